"""Draw images from a trained run or from published weights, one forward pass each.

    python -m domains.imagenet.sample run=runs/digits alpha=1.5 classes=[3,7] per_class=10 seed=1
    python -m domains.imagenet.sample model=drift-b2 vae=stabilityai/sd-vae-ft-mse alpha=1.1 classes=[207,360]

`run` is a run directory of training; `model` a folder, or the id of a Hub repository, as `save_pretrained` and
`python -m domains.imagenet.convert` write it. Its latents are decoded by `vae`, again a folder or an id; those of a run
by the tokenizer of the run. `decay` chooses among the averages that a run keeps; without it the first of ema.decays.
Writes one sheet, a class per row, and the images as numbered PNG files, into <run>/samples/alpha<alpha>_seed<seed>,
with _ema<decay> where that is given, or into out=<folder>.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS, OneStepGenerator
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.pictures import save_image, save_sheet
from domains.imagenet.sampling import generate, load_generator
from domains.imagenet.tokenizers import Tokenizer, load_tokenizer
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.devices import chosen_device
from drifting.training.errors import ConfigError

SHOWN_CLASSES = (207, 360, 387, 974, 88, 979, 417, 279)  # of 1000: those that papers on such models show


@dataclass
class SampleConfig:
    """What to draw, and from which of the two: `run` or `model`."""

    run: str = ""
    model: str = ""
    vae: str = ""
    decay: float | None = None  # of a run: one of its ema.decays
    alpha: float = 1.0
    classes: list[int] = field(default_factory=list)  # empty: every class if there are few, else a known selection
    per_class: int = 10
    seed: int = 0
    batch: int = 16
    device: str = "auto"  # cuda where there is one, else cpu
    out: str = ""

    def __post_init__(self) -> None:
        which = "a run directory, or model=<folder or Hub id>, and not both"
        require((self.run == "") != (self.model == ""), "run", which, f"run={self.run!r}, model={self.model!r}")
        require(1 <= self.alpha < float("inf"), "alpha", "a guidance scale >= 1 (1 is no guidance)", self.alpha)
        require(self.per_class >= 1, "per_class", "at least 1", self.per_class)
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.decay is None or self.run != "", "decay", "left away, where model is given", self.decay)
        require(self.out != "" or self.run != "", "out", "a folder for the images, where model is given", self.out)


@command(SampleConfig, "imagenet_sample", configs=CONFIGS)
def main(config: SampleConfig) -> None:
    """Write the sheet and the numbered images."""
    device = chosen_device(config.device)
    generator, origin, tokenizer = load(config)
    classes = chosen_classes(config.classes, generator.cfg.num_classes)
    labels = torch.tensor(classes).repeat_interleave(config.per_class)
    images = generate(
        generator.to(device),
        labels,
        config.alpha,
        seed=config.seed,
        batch=config.batch,
        tokenizer=None if tokenizer is None else tokenizer.to(device),
    )
    average = "" if config.decay is None else f"_ema{config.decay}"
    name = f"alpha{config.alpha:g}_seed{config.seed}{average}"
    out = Path(config.out) if config.out else Path(config.run) / "samples" / name
    out.mkdir(parents=True, exist_ok=True)
    save_sheet(out / "sheet.png", images, columns=config.per_class)
    for index, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
        save_image(out / f"{index:05d}_class{label}.png", image)
    print(f"{len(images)} images of {origin}, alpha {config.alpha:g}: {out}/sheet.png and {out}/*_class*.png")


def load(config: SampleConfig) -> tuple[OneStepGenerator, str, Tokenizer | None]:
    """The generator, in eval mode, what to call it, and what decodes its samples."""
    if config.model:
        published = DiTGenerator.from_pretrained(config.model, setting="model")
        return published, config.model, decoder_for(published, config.vae)
    trained, generator, step = load_generator(Path(config.run), config.decay)
    if config.alpha > trained.guidance.high:
        print(f"note: alpha {config.alpha:g} is beyond the {trained.guidance.high:g} that training has seen")
    own = trained.tokenizer.kind != "none" and not config.vae
    return generator, f"step {step}", trained.tokenizer.build() if own else decoder_for(generator, config.vae)


def chosen_classes(classes: list[int], num_classes: int) -> list[int]:
    """The labels to draw; those of the configuration, checked, or a default.

    Raises:
        ConfigError: a label that the generator does not know.
    """
    if not classes:
        few = num_classes <= max(SHOWN_CLASSES)
        return list(range(min(num_classes, 10))) if few else list(SHOWN_CLASSES)
    if not all(0 <= label < num_classes for label in classes):
        raise ConfigError(f"classes must be labels in 0..{num_classes - 1}, got {classes}")
    return classes


def decoder_for(generator: OneStepGenerator, vae: str) -> Tokenizer | None:
    """What turns the generator's samples into images; None for a generator of images.

    Raises:
        ConfigError: latents without a `vae`, or with one of other latents, or a `vae` for a generator of images.
    """
    channels = generator.cfg.channels
    if channels in (1, 3):
        if vae:
            raise ConfigError(f"vae must be left away: this generator makes images of {channels} channels, got {vae!r}")
        return None
    if not vae:
        raise ConfigError(
            f"this generator makes latents of {channels} channels: set vae=<folder or Hub id> of the autoencoder that "
            "decodes them, such as vae=stabilityai/sd-vae-ft-mse"
        )
    tokenizer = load_tokenizer("sd_kl", vae, setting="vae")
    if tokenizer.channels != channels:
        raise ConfigError(f"vae={vae} decodes {tokenizer.channels} channels, this generator makes {channels}")
    return tokenizer


if __name__ == "__main__":
    main()
