"""Measure a trained run against held-out images, beside what real training images score in the samples' place.

python -m domains.imagenet.evaluate run=runs/digits
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS, EvalSection, OneStepGenerator
from domains.imagenet.digits import NUM_CLASSES, DigitsSplits, LabelledImages, digits_splits
from domains.imagenet.judge import train_judge
from domains.imagenet.pictures import save_comparison, save_sheet
from domains.imagenet.quality import Quality, measure, median_nearest
from domains.imagenet.sampling import generate, load_generator
from drifting.training.atomic_file import replace_text
from drifting.training.command_line import command
from drifting.training.errors import ConfigError

JUDGE_SEED = 1001  # of the first judge: no run's own seed
SAMPLE_SEED = 99
GRID_COLUMNS = 10


@dataclass
class EvaluateConfig:
    """`run`: a run directory of training; `eval`: as in training."""

    run: str
    eval: EvalSection = field(default_factory=EvalSection)


@command(EvaluateConfig, "imagenet_evaluate", configs=CONFIGS)
def main(config: EvaluateConfig) -> None:
    """Evaluate the newest checkpoint of a run."""
    report(Path(config.run), config.eval)


def report(run_dir: Path, section: EvalSection) -> dict[str, dict[str, float]]:
    """Write metrics.json, a sample sheet per guidance scale and samples beside real images; print the table."""
    torch.set_num_threads(1)  # judges are tiny: threads cost more than they bring
    _, generator, step = load_generator(run_dir)
    splits = digits_splits()
    check_enough_samples(section, splits)
    held_out = getattr(splits, section.split)
    print(f"evaluating step {step} on {len(held_out)} {section.split} images; training {section.judges} judges ...")
    judges = [train_judge(splits.train, JUDGE_SEED + index) for index in range(section.judges)]

    qualities = {"training images": measure(splits.train, held_out, splits.train, judges)}
    labels = torch.arange(NUM_CLASSES).repeat_interleave(section.samples_per_class)
    for alpha in section.alphas:
        samples = LabelledImages(generate(generator, labels, alpha, seed=SAMPLE_SEED), labels)
        qualities[f"alpha {alpha:g}"] = measure(samples, held_out, splits.train, judges)
        grid = samples.images.unflatten(0, (NUM_CLASSES, -1))[:, :GRID_COLUMNS].flatten(0, 1)
        save_sheet(run_dir / f"samples_alpha_{alpha:g}.png", grid, GRID_COLUMNS)
        if alpha == section.alphas[0]:
            titled = [("real, held out", real_grid(held_out)), (f"generated in one step, alpha {alpha:g}", grid)]
            save_comparison(run_dir / "real_and_generated.png", titled)

    # Of held-out images: what a sample that copies nothing has.
    unseen = median_nearest(held_out.images.flatten(1), splits.train.images.flatten(1))
    rows = {
        name: relative_figures(quality, qualities["training images"], unseen) for name, quality in qualities.items()
    }
    speed = samples_per_second(generator)
    figures = {
        "step": step,
        "split": section.split,
        "judges": section.judges,
        "samples": len(labels),
        "samples_per_second": speed,
        "rows": rows,
        "absolute": {name: asdict(quality) for name, quality in qualities.items()},
    }
    replace_text(run_dir / "metrics.json", json.dumps(figures, indent=2) + "\n")
    print_table(rows)
    print(f"one-step sampler: {speed:,.0f} images/s on this machine, one thread")
    print(f"everything lies in {run_dir}: metrics.json, samples_alpha_*.png, real_and_generated.png, curves.png,")
    print("metrics.jsonl, tensorboard/, checkpoints/")
    return rows


def check_enough_samples(section: EvalSection, splits: DigitsSplits) -> None:
    """Refuse fewer samples per class than the largest class has training images: they are compared in equal numbers."""
    least = int(splits.train.labels.bincount().max())
    if section.samples_per_class < least:
        raise ConfigError(
            f"eval.samples_per_class must be at least {least}, the training images of the largest class, "
            f"got {section.samples_per_class}"
        )


def relative_figures(quality: Quality, train: Quality, unseen_nearest: float) -> dict[str, float]:
    """Figures as multiples of what real images score, where a multiple says more than the figure."""
    return {
        "FD(judge) / real": quality.fd / train.fd,
        "FD, same number": quality.fd_matched / train.fd,
        "accuracy": quality.accuracy,
        "std / real": quality.std / train.std,
        "precision": quality.precision,
        "recall": quality.recall,
        "nearest / real": quality.nearest / unseen_nearest,
    }


def real_grid(data: LabelledImages) -> torch.Tensor:
    """The first images of every class, [C * GRID_COLUMNS, 1, H, W]."""
    return torch.cat([data.images[data.labels == label][:GRID_COLUMNS] for label in range(NUM_CLASSES)])


def samples_per_second(generator: OneStepGenerator, batch: int = 1000, repeats: int = 5) -> float:
    """Throughput of sampling, best of `repeats` batches; noise included."""
    labels = torch.arange(batch) % NUM_CLASSES
    seconds = []
    for repeat in range(repeats):
        began = time.perf_counter()
        generate(generator, labels, 1.0, seed=repeat)
        seconds.append(time.perf_counter() - began)
    return batch / min(seconds)


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """One line per row of figures."""
    names = list(next(iter(rows.values())))
    width = max(len(row) for row in rows)
    print("\n" + " " * width + "".join(f"  {name:>16}" for name in names))
    for row, figures in rows.items():
        print(f"{row:<{width}}" + "".join(f"  {figures[name]:>16.3f}" for name in names))
    print()


if __name__ == "__main__":
    main()
