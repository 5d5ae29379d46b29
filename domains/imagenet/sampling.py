"""Samples of a generator, one forward pass each, and the averaged generator of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.tokenizers import Tokenizer
from drifting.training.checkpoint import load_average, load_entries
from drifting.training.draws import stream
from drifting.training.ema import Ema
from drifting.training.run_dir import load_config

BLOCK = 64  # samples whose noise is drawn together


@torch.no_grad()
def generate_batches(
    generator: OneStepGenerator,
    labels: Tensor,
    alpha: float,
    *,
    seed: int,
    batch: int = 1000,
    tokenizer: Tokenizer | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """One image per label [K] at one guidance scale, in order: [at most `batch`, C, H, W] on the CPU each time.

    Noise is drawn in blocks, each from a source of its own: 50,000 samples need the memory of one batch, and neither
    `batch` nor the device changes what an image looks like. Decoded where a tokenizer is given. The labels are those of
    the samples number `first` and after: several processes may make a part each.
    """
    device = next(generator.parameters()).device
    for start in range(0, len(labels), batch):
        part = labels[start : start + batch]
        condition = [part.to(device), torch.full((len(part),), float(alpha), device=device)]
        noise, *style = _draws(generator, seed, first + start, first + start + len(part))
        samples = generator(noise.to(device), *condition, *(codes.to(device) for codes in style))
        yield (samples if tokenizer is None else tokenizer.decode(samples)).cpu()


def generate(
    generator: OneStepGenerator,
    labels: Tensor,
    alpha: float,
    *,
    seed: int,
    batch: int = 1000,
    tokenizer: Tokenizer | None = None,
) -> Tensor:
    """All images of `generate_batches` at once, [K, C, H, W]."""
    batches = generate_batches(generator, labels, alpha, seed=seed, batch=batch, tokenizer=tokenizer)
    return torch.cat(list(batches))


def load_generator(run_dir: Path, decay: float | None = None) -> tuple[ImagenetConfig, OneStepGenerator, int]:
    """Configuration, averaged generator and step of a run's newest checkpoint.

    `decay`: which of the run's averages, by its ema.decays; None is the first.

    Raises:
        RunDirError: not a run directory of image training.
        CheckpointError: no checkpoint yet, a damaged one, or no such average.
    """
    config = load_config(run_dir, ImagenetConfig)
    generator, step = load_average(run_dir, config.generator.build(), config.ema, decay)
    return config, generator, step


def load_averages(run_dir: Path, section: EvalSection) -> tuple[ImagenetConfig, dict[str, OneStepGenerator], int]:
    """As `load_generator`, of all averages that `section` asks for: "" for a single one, "ema <decay>" for several.

    All are of one checkpoint, on the CPU.

    Raises:
        ConfigError: an average that the run does not keep.
    """
    config = load_config(run_dir, ImagenetConfig)
    decays = section.averages(config.ema.decays)
    ema = Ema(config.generator.build(), config.ema.decays, warmup=config.ema.warmup)
    step = load_entries(run_dir, ema=ema)
    names = [""] if len(decays) == 1 else [f"ema {decay}" for decay in decays]
    generators = [cast(OneStepGenerator, ema.model(decay)) for decay in decays]
    return config, dict(zip(names, generators, strict=True)), step


def _draws(generator: OneStepGenerator, seed: int, start: int, stop: int) -> list[Tensor]:
    """Noise [n, C, H, W], and style [n, codebooks] where the generator has any, of the samples start .. stop - 1."""
    cfg = generator.cfg
    first, last = start // BLOCK, -(-stop // BLOCK)
    blocks = []
    for block in range(first, last):
        source = stream(seed, "samples", block)
        drawn = [torch.randn(BLOCK, cfg.channels, cfg.size, cfg.size, generator=source)]
        if isinstance(generator, DiTGenerator):
            style = generator.conditioning.draw_style(BLOCK, torch.device("cpu"), source)
            drawn += [] if style is None else [style]
        blocks.append(drawn)
    own = slice(start - first * BLOCK, stop - first * BLOCK)
    return [torch.cat(parts)[own] for parts in zip(*blocks, strict=True)]
