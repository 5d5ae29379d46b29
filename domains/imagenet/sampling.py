"""Sampling: noise, class and guidance scale to an image, in one forward pass."""

from pathlib import Path

import torch
from torch import Tensor

from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.vae import Tokenizer
from drifting.training.checkpoint import load_average
from drifting.training.run_dir import load_config


@torch.no_grad()
def generate(
    generator: OneStepGenerator,
    labels: Tensor,
    alpha: float,
    *,
    seed: int,
    batch: int = 1000,
    tokenizer: Tokenizer | None = None,
) -> Tensor:
    """One image per label [K] at one guidance scale: [K, C, H, W] on the CPU, decoded where a tokenizer is given.

    All randomness is drawn beforehand from `seed`: neither `batch` nor the device changes what an image looks like.
    """
    device = next(generator.parameters()).device
    source = torch.Generator().manual_seed(seed)
    cfg = generator.cfg
    inputs = [
        torch.randn(len(labels), cfg.channels, cfg.size, cfg.size, generator=source),
        labels,
        torch.full((len(labels),), float(alpha)),
    ]
    if isinstance(generator, DiTGenerator):
        style = generator.conditioning.draw_style(len(labels), torch.device("cpu"), source)
        inputs += [] if style is None else [style]
    images = []
    for part in zip(*(values.split(batch) for values in inputs), strict=True):
        samples = generator(*(values.to(device) for values in part))
        images.append((samples if tokenizer is None else tokenizer.decode(samples)).cpu())
    return torch.cat(images)


def load_generator(run_dir: Path) -> tuple[ImagenetConfig, OneStepGenerator, int]:
    """Configuration, averaged generator (first EMA decay) and step of a run's newest checkpoint.

    Raises:
        RunDirError: not a run directory of image training.
        CheckpointError: no checkpoint yet, or a damaged one.
    """
    config = load_config(run_dir, ImagenetConfig)
    generator, step = load_average(run_dir, config.generator.build(), config.ema)
    return config, generator, step
