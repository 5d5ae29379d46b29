"""Which field learns what, in equal time? Small generators on the plane and on handwritten digits, several seeds.

    python -m benchmarks.fields [--seconds 8] [--seeds 0 1 2]

Every field trains the same network for the same processor time and has its temperature chosen from a grid in half that
time, on a seed and on reference samples that the table does not use. The plane: energy distance to the target, over
that of as many real samples. Digits: FD(judge) to held-out images, over that of the training images; recall.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev

import torch
from torch import Tensor, nn

from benchmarks.bar_chart import save_bars
from benchmarks.machine import use_one_core
from benchmarks.measure import Quartiles
from benchmarks.options import add_core, options
from benchmarks.report import print_table, save
from domains.imagenet.data.digits import NUM_CLASSES, digits_splits
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.judge import Judge, train_judge
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.quality import measure
from domains.toy.config import GeneratorConfig
from domains.toy.coverage import energy_distance
from domains.toy.generator import mlp
from domains.toy.targets import TARGETS, Target
from drifting import DriftLoss, MeanShift, Sinkhorn, gaussian, laplacian
from drifting.fields import Field, KernelGradient, Mmd, Sharp
from drifting.kernels import Matern

TUNING_SEED = 1000
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Candidate:
    """A field and the temperatures it may choose from, in units of the mean distance."""

    field: Field
    temperatures: tuple[float, ...]

    @property
    def needs_second_batch(self) -> bool:
        """Whether an independent generated batch repels; its generation counts as time."""
        return isinstance(self.field, Sinkhorn)


WIDTHS = (0.03, 0.1, 0.3)
CANDIDATES = {
    "mean shift (paper)": Candidate(MeanShift(floor=0.0), WIDTHS),
    "mean shift, floor 1e-3": Candidate(MeanShift(), WIDTHS),
    "mean shift, gaussian": Candidate(MeanShift(kernel=gaussian, floor=0.0), WIDTHS),
    "mean shift, Matern 3/2": Candidate(MeanShift(kernel=Matern(1.5), floor=0.0), WIDTHS),
    "mean shift, separate": Candidate(MeanShift(floor=0.0, separate_blocks=True), WIDTHS),
    "mean shift, bias corrected": Candidate(MeanShift(floor=0.0, bias_correction=True), WIDTHS),
    "kernel gradient": Candidate(KernelGradient(laplacian), WIDTHS),
    "sharp": Candidate(Sharp(laplacian), WIDTHS),
    "MMD": Candidate(Mmd(laplacian), (0.1, 0.3, 1.0)),
    "Sinkhorn": Candidate(Sinkhorn(), (0.003, 0.01, 0.03)),
}
Batch = Callable[[], tuple[Tensor, Tensor, Tensor | None]]
"""One step's generated samples [B, G, D], positives [B, P, D] and, where asked for, a second batch [B, G, D]."""


def train(model: nn.Module, batch: Batch, candidate: Candidate, temperature: float, seconds: float) -> int:
    """Train for `seconds` of processor time, the learning rate falling to zero along a cosine; number of steps."""
    loss = DriftLoss((temperature,), candidate.field)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    began, steps = time.process_time(), 0
    while (share := (time.process_time() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * share))
        gen, pos, second = batch()
        optimizer.zero_grad()
        loss(gen, pos, self_ref=second).backward()
        optimizer.step()
        steps += 1
    return steps


def plane(target: Target, candidate: Candidate, temperature: float, seconds: float, seed: int) -> dict[str, float]:
    """Energy distance of a network trained on a 2-D target, over that between real samples."""
    torch.manual_seed(seed)
    config = GeneratorConfig(width=128)
    model = mlp(config)

    def batch(size: int = 256) -> tuple[Tensor, Tensor, Tensor | None]:
        made = model(torch.randn(2 * size if candidate.needs_second_batch else size, config.noise_dim))
        second = made[None, size:].detach() if candidate.needs_second_batch else None
        return made[None, :size], target.draw(size)[None], second

    steps = train(model, batch, candidate, temperature, seconds)
    count, draws = 2000, 4
    with torch.no_grad():
        made = [model(torch.randn(count, config.noise_dim)) for _ in range(draws)]
    distance = mean(energy_distance(x, target.draw(count)) for x in made)
    between_real = mean(energy_distance(target.draw(count), target.draw(count)) for _ in range(draws))
    return {"energy distance": distance / between_real, "steps": steps}


@cache
def judged() -> tuple[list[Judge], dict[str, float]]:
    """Judges of digits, and FD of the training images to each held-out split."""
    splits = digits_splits()
    judges = [train_judge(splits.train, seed) for seed in range(2)]
    held_out = {"validation": splits.validation, "test": splits.test}
    return judges, {name: measure(splits.train, split, splits.train, judges).fd for name, split in held_out.items()}


def digits(split: str, candidate: Candidate, temperature: float, seconds: float, seed: int) -> dict[str, float]:
    """FD(judge) and recall of a class-conditional network trained on handwritten digits, on a held-out split."""
    judges, fd_of_training_images = judged()
    torch.manual_seed(seed)
    splits = digits_splits()
    model = MlpGenerator(MlpConfig(hidden=256))
    by_class = [splits.train.images[splits.train.labels == label].flatten(1) for label in range(NUM_CLASSES)]

    def generate(labels: Tensor) -> Tensor:
        return model(torch.randn(len(labels), 1, 8, 8), labels, torch.ones(len(labels)))

    def batch(size: int = 48) -> tuple[Tensor, Tensor, Tensor | None]:
        labels = torch.arange(NUM_CLASSES).repeat_interleave(size)
        pos = torch.stack([images[torch.randperm(len(images))[:size]] for images in by_class])
        gen = generate(labels).view(NUM_CLASSES, size, -1)
        if not candidate.needs_second_batch:
            return gen, pos, None
        with torch.no_grad():
            return gen, pos, generate(labels).view(NUM_CLASSES, size, -1)

    steps = train(model, batch, candidate, temperature, seconds)
    labels = torch.arange(NUM_CLASSES).repeat_interleave(1000)
    with torch.no_grad():
        samples = LabelledImages(generate(labels), labels)
    quality = measure(samples, getattr(splits, split), splits.train, judges)
    return {"FD(judge)": quality.fd / fd_of_training_images[split], "recall": quality.recall, "steps": steps}


def tasks() -> dict[str, tuple[str, Callable[..., dict[str, float]], Callable[..., dict[str, float]]]]:
    """Name -> (figure to choose a temperature by, run for choosing, run for the table); each called with
    (candidate, temperature, seconds, seed)."""
    found = {}
    for name, target in TARGETS.items():

        def on_plane(*given: object, target: Target = target) -> dict[str, float]:
            return plane(target, *given)

        found[name] = ("energy distance", on_plane, on_plane)
    found["digits"] = ("FD(judge)", lambda *given: digits("validation", *given), lambda *given: digits("test", *given))
    return found


def main() -> None:
    parser = options(__doc__, "fields", quick="a fraction of a second each")
    add_core(parser)
    parser.add_argument("--seconds", type=float, default=8.0, help="processor time of one training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(tasks()), default=list(tasks()))
    arguments = parser.parse_args()
    seconds, seeds = (0.2, [0, 1]) if arguments.quick else (arguments.seconds, arguments.seeds)
    use_one_core(arguments.cpu)

    results: dict[str, dict[str, dict]] = {}
    for task in arguments.tasks:
        criterion, choose, final = tasks()[task]
        results[task] = {}
        for name, candidate in CANDIDATES.items():
            tried = {tau: choose(candidate, tau, seconds / 2, TUNING_SEED)[criterion] for tau in candidate.temperatures}
            # A diverged network has a figure of NaN, which no comparison would reject.
            best = min(tried, key=lambda tau: tried[tau] if math.isfinite(tried[tau]) else math.inf)
            runs = [final(candidate, best, seconds, seed) for seed in seeds]
            results[task][name] = {"temperature": best, "tried": tried, "runs": runs}
            figures = {key: [run[key] for run in runs] for key in runs[0]}
            spread = "  ".join(
                f"{key} {mean(v):.3f} +- {stdev(v) if len(v) > 1 else 0:.3f}" for key, v in figures.items()
            )
            print(f"{task:<14}{name:<28} tau {best:<6g} {spread}", flush=True)

    print()
    columns = [(task, figure) for task in arguments.tasks for figure in _figures(results[task])]
    rows = [
        [name, *(_cell([run[figure] for run in results[task][name]["runs"]]) for task, figure in columns)]
        for name in CANDIDATES
    ]
    print_table(["mean +- deviation over seeds", *(f"{task}: {figure}" for task, figure in columns)], rows)
    picture = save("fields", {"seconds": seconds, "seeds": seeds, "results": results}, arguments.root)
    draw_picture(results, seconds, picture)


def draw_picture(results: dict[str, dict[str, dict]], seconds: float, path: Path) -> None:
    """A panel per task, a bar per field: median of what the temperature was chosen by, and its range over seeds."""
    panels = {}
    for task, fields in results.items():
        criterion = tasks()[task][0]
        bars = []
        for found in fields.values():
            values = sorted(run[criterion] for run in found["runs"])
            bars.append(Quartiles(values[0], median(values), values[-1]))
        panels[f"{task}: {criterion} over real"] = {"median and range over seeds": bars}
    names = [name.replace(", ", "\n").replace(" (", "\n(") for name in CANDIDATES]
    save_bars(path, names, panels, title=f"Fields in equal time, {seconds:g} s of one core; 1 is real data")


def _figures(of_task: dict[str, dict]) -> list[str]:
    return list(next(iter(of_task.values()))["runs"][0])


def _cell(values: list[float]) -> str:
    return f"{mean(values):.3g} +- {stdev(values) if len(values) > 1 else 0:.2g}"


if __name__ == "__main__":
    main()
