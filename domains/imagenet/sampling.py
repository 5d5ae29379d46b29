"""Sampling: noise, class and guidance scale to an image, in one forward pass."""

from pathlib import Path

import torch
from torch import Tensor

from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.digits import IMAGE_SHAPE
from domains.imagenet.generator import DiTGenerator
from drifting.training.checkpoint import load_average
from drifting.training.run_dir import load_config


@torch.no_grad()
def generate(generator: OneStepGenerator, labels: Tensor, alpha: float, *, seed: int, batch: int = 1000) -> Tensor:
    """One image per label [K] at one guidance scale: [K, C, H, W] on the CPU.

    All randomness is drawn beforehand from `seed`: neither `batch` nor the device changes what an image looks like.
    """
    device = next(generator.parameters()).device
    source = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(len(labels), *IMAGE_SHAPE, generator=source),
        labels,
        torch.full((len(labels),), float(alpha)),
    ]
    if isinstance(generator, DiTGenerator):
        style = generator.conditioning.draw_style(len(labels), torch.device("cpu"), source)
        inputs += [] if style is None else [style]
    parts = zip(*(values.split(batch) for values in inputs), strict=True)
    return torch.cat([generator(*(values.to(device) for values in part)).cpu() for part in parts])


def load_generator(run_dir: Path) -> tuple[ImagenetConfig, OneStepGenerator, int]:
    """Configuration, averaged generator (first EMA decay) and step of a run's newest checkpoint.

    Raises:
        RunDirError: not a run directory of image training.
        CheckpointError: no checkpoint yet, or a damaged one.
    """
    config = load_config(run_dir, ImagenetConfig)
    generator, step = load_average(run_dir, config.generator.build(), config.ema)
    return config, generator, step
