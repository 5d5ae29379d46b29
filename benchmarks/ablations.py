"""Do the paper's ablations point the same way at the scale of a CPU? One experiment, one thing changed, several seeds.

    python -m benchmarks.ablations name=antisymmetry
    python -m benchmarks.ablations name=positives seeds=[0,1] steps=300
    python -m benchmarks.ablations name=temperatures base=fashion_mnist "overrides=['data.path=FOLDER']"

Names: those of ABLATIONS. Every variant is trained by `python -m domains.imagenet.train` (and its auto-encoder by
`pretrain_mae`, where that is what changes) and measured by its report: FD(judge) over that of the training images, at
the best guidance scale. A finished run is used again, an unfinished one continued: seeds can be added. Absolute numbers
have nothing to do with the paper's FID on ImageNet; the order can be compared, and the table puts both side by side.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

from benchmarks.report import ROOT, print_table, save
from drifting.training.command_line import command
from drifting.training.config import require

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MEASURE = "FD(judge) / real"


@dataclass(frozen=True)
class Variant:
    """What is changed: settings of training or of the auto-encoder; the paper's FID where it has one."""

    label: str
    settings: tuple[str, ...] = ()
    encoder: tuple[str, ...] | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Ablation:
    """Variants of one question; the first is the reference."""

    question: str
    variants: tuple[Variant, ...]


def _sides(label: str, attraction: float, repulsion: float, paper: float) -> Variant:
    return Variant(label, (f"drift.attraction={attraction}", f"drift.repulsion={repulsion}"), paper=paper)


def _counts(classes: int, positives: int, generated: int, paper: float | None = None) -> Variant:
    settings = {"classes_per_step": classes, "num_positive": positives, "num_generated": generated}
    label = f"{classes} / {positives} / {generated}"
    return Variant(label, tuple(f"drift.{key}={value}" for key, value in settings.items()), paper=paper)


ABLATIONS = {
    "antisymmetry": Ablation(
        "Table 1: attraction and repulsion out of balance",
        (
            _sides("V+ - V-", 1, 1, 8.46),
            _sides("1.5 V+ - V-", 1.5, 1, 41.05),
            _sides("V+ - 1.5 V-", 1, 1.5, 46.28),
            _sides("2 V+ - V-", 2, 1, 86.16),
            _sides("V+ - 2 V-", 1, 2, 112.84),
            _sides("V+ only", 1, 0, 177.14),
        ),
    ),
    "positives": Ablation(
        "Table 2: N_c / N_pos / N_neg, positives at fixed N_c and N_neg (the paper: 64/1, 16, 32, 64/64)",
        (
            _counts(10, 32, 32, 8.46),
            _counts(10, 16, 32, 8.97),
            _counts(10, 8, 32, 10.39),
            _counts(10, 1, 32, 20.43),
        ),
    ),
    "problem_size": Ablation(
        "Table 2: N_c / N_pos / N_neg at the fixed budget N_c N_neg (the paper: 64/64/64 to 512/8/8)",
        (_counts(5, 64, 64, 8.46), _counts(10, 32, 32, 9.32)),
    ),
    "temperatures": Ablation(
        "one temperature instead of three",
        (
            Variant("0.02, 0.05, 0.2", ("drift.temperatures=[0.02,0.05,0.2]",), paper=8.46),
            Variant("0.02", ("drift.temperatures=[0.02]",), paper=10.62),
            Variant("0.05", ("drift.temperatures=[0.05]",), paper=8.67),
            Variant("0.2", ("drift.temperatures=[0.2]",), paper=8.96),
        ),
    ),
    "kernel_normalization": Ablation(
        "Table 11: softmax over both sides, over references alone, none",
        (
            Variant("softmax x and y", paper=8.46),
            Variant("softmax over y", ("drift.affinity=row",), paper=8.92),
            Variant("none", ("drift.affinity=unnormalized",), paper=10.54),
        ),
    ),
    "features": Ablation(
        "A.5: locations and global statistics (a, b), patches of 2 x 2 (c), of 4 x 4 (d)",
        (
            Variant("a - d", ("encoder.maps=[layer1,layer2]", "encoder.patch_sizes=[2,4]"), paper=8.46),
            Variant("a - c", ("encoder.maps=[layer1,layer2]", "encoder.patch_sizes=[2]"), paper=9.10),
            Variant("a, b", ("encoder.maps=[layer1,layer2]", "encoder.patch_sizes=[]"), paper=9.58),
        ),
    ),
    "style": Ablation(
        "A.2: random style tokens",
        (
            Variant("with", paper=8.46),
            Variant("without", ("generator.dit.style_tokens=0",), paper=8.86),
        ),
    ),
    "encoders": Ablation(
        "Table 3: width and training of the auto-encoder (the paper: widths 256 to 640, 192 and 1280 epochs)",
        (
            Variant("width 16, classified", encoder=(), paper=3.36),
            Variant("width 16", encoder=("classification_steps=0",), paper=4.28),
            Variant("width 8", encoder=("mae.base_channels=8", "mae.max_groups=2", "classification_steps=0")),
            Variant("width 16, a tenth of the steps", encoder=("run.steps=200", "classification_steps=0"), paper=6.30),
            Variant("none: pixels", ("encoder.kind=pixels", "encoder.run=''")),
        ),
    ),
}


@dataclass
class AblationConfig:
    """`name`: of ABLATIONS. `base`: the experiment that is changed. `steps`: of each run, null for the experiment's.

    `overrides`: further settings of all training commands.
    """

    name: str
    base: str = "digits_features"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int | None = None
    root: str = str(ROOT)
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.name in ABLATIONS, "name", " or ".join(ABLATIONS), self.name)
        require(len(self.seeds) > 0, "seeds", "one or more", self.seeds)


def as_name(text: str) -> str:
    """A run's name of any text: letters, digits and underscores, which the command line takes as they are."""
    return "".join(character if character.isalnum() else "_" for character in text)


def run(module: str, root: Path, name: str, settings: Sequence[str]) -> Path:
    """A finished run of a command of the project; ends this process if it fails."""
    line = [sys.executable, "-m", f"domains.imagenet.{module}", *settings, f"run.root={root}", f"run.name={name}"]
    if subprocess.run(line).returncode:
        sys.exit(f"error: {' '.join(line)} failed")
    return root / name


def trained(config: AblationConfig, variant: Variant, seed: int) -> dict[str, Any]:
    """metrics.json of one variant and seed."""
    root = Path(config.root) / "ablations"
    settings = [f"experiment={config.base}", f"run.seed={seed}", *variant.settings, *config.overrides]
    if config.steps is not None:
        settings.append(f"run.steps={config.steps}")
    if variant.encoder is not None:
        own = as_name("_".join(["mae", *variant.encoder]))
        settings.append(f"encoder.run={run('pretrain_mae', root, own, variant.encoder)}")
    # Another name for other settings: a finished run is used again.
    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:8]
    name = f"{config.base}_{config.name}_{as_name(variant.label)}_{seed}_{digest}"
    finished = root / name / "metrics.json"
    if not finished.exists():
        run("train", root, name, settings)
    return json.loads(finished.read_text())


def best(metrics: dict[str, Any]) -> tuple[float, str]:
    """The lowest measure over guidance scales, and which one that is."""
    return min((row[MEASURE], name) for name, row in metrics["rows"].items() if name.startswith("alpha"))


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Bars of the mean over seeds, each seed a dot, the paper's FID beside them where there is one."""
    papers = [row["paper"] for row in rows]
    panels = 2 if any(value is not None for value in papers) else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.4 * panels, 3.6), layout="constrained", squeeze=False)
    labels = [row["label"] for row in rows]
    axes[0, 0].bar(labels, [row["mean"] for row in rows], color="#0072b2", width=0.6)
    for place, row in enumerate(rows):
        axes[0, 0].plot([place] * len(row["by_seed"]), row["by_seed"], "k.", markersize=5)
    axes[0, 0].set_ylabel(MEASURE)
    if panels == 2:
        axes[0, 1].bar(labels, [value or 0 for value in papers], color="#999999", width=0.6)
        axes[0, 1].set_ylabel("FID in the paper, ImageNet 256")
    for axis in axes[0]:
        axis.tick_params(axis="x", labelrotation=30, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)


@command(AblationConfig, "ablations", configs=CONFIGS)
def main(config: AblationConfig) -> None:
    """Train what is missing, print the table, draw it."""
    ablation = ABLATIONS[config.name]
    rows = []
    for variant in ablation.variants:
        found = [best(trained(config, variant, seed)) for seed in config.seeds]
        values = [value for value, _ in found]
        rows.append(
            {
                "label": variant.label,
                "mean": mean(values),
                "deviation": stdev(values) if len(values) > 1 else 0.0,
                "by_seed": values,
                "at": [name for _, name in found],
                "paper": variant.paper,
            }
        )
    print(f"\n{ablation.question}; {config.base}, seeds {config.seeds}")
    cells = [
        [
            row["label"],
            f"{row['mean']:.3f}",
            f"{row['deviation']:.3f}",
            " ".join(f"{value:.3f}" for value in row["by_seed"]),
            "" if row["paper"] is None else f"{row['paper']:.2f}",
        ]
        for row in rows
    ]
    print_table(["variant", MEASURE, "+-", "by seed", "FID, paper"], cells)
    figures = {"ablation": config.name, "experiment": config.base, "seeds": config.seeds, "rows": rows}
    draw(rows, ablation.question, save(f"ablation_{config.name}", figures, Path(config.root)))


if __name__ == "__main__":
    main()
