"""Draw images from a trained run, one forward pass each.

    python -m domains.imagenet.sample run=runs/digits alpha=1.5 classes=[3,7] per_class=10 seed=1

Writes one sheet, dark on white and enlarged, and the plain images as numbered PNG files into
<run>/samples/alpha<alpha>_seed<seed>, or into out=<folder>.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS
from domains.imagenet.digits import NUM_CLASSES
from domains.imagenet.pictures import save_image, save_sheet
from domains.imagenet.sampling import generate, load_generator
from drifting.training.command_line import command
from drifting.training.config import require


@dataclass
class SampleConfig:
    """What to draw from `run`, a run directory of training."""

    run: str
    alpha: float = 1.0
    classes: list[int] = field(default_factory=lambda: list(range(NUM_CLASSES)))
    per_class: int = 10
    seed: int = 0
    batch: int = 1000
    out: str = ""

    def __post_init__(self) -> None:
        require(1 <= self.alpha < float("inf"), "alpha", "a guidance scale >= 1 (1 is no guidance)", self.alpha)
        valid = len(self.classes) > 0 and all(0 <= label < NUM_CLASSES for label in self.classes)
        require(valid, "classes", f"one or more labels in 0..{NUM_CLASSES - 1}", self.classes)
        require(self.per_class >= 1, "per_class", "at least 1", self.per_class)
        require(self.batch >= 1, "batch", "at least 1", self.batch)


@command(SampleConfig, "imagenet_sample", configs=CONFIGS)
def main(config: SampleConfig) -> None:
    """Write the sheet and the numbered images."""
    run_dir = Path(config.run)
    trained, generator, step = load_generator(run_dir)
    if config.alpha > trained.guidance.high:
        print(f"note: alpha {config.alpha:g} is beyond the {trained.guidance.high:g} that training has seen")
    labels = torch.tensor(config.classes).repeat_interleave(config.per_class)
    images = generate(generator, labels, config.alpha, seed=config.seed, batch=config.batch)

    out = Path(config.out) if config.out else run_dir / "samples" / f"alpha{config.alpha:g}_seed{config.seed}"
    out.mkdir(parents=True, exist_ok=True)
    save_sheet(out / "sheet.png", images, columns=config.per_class)
    for index, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
        save_image(out / f"{index:05d}_class{label}.png", image)
    print(f"{len(images)} images of step {step}, alpha {config.alpha:g}: {out}/sheet.png and {out}/*_class*.png")


if __name__ == "__main__":
    main()
