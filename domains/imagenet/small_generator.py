"""What the one-step generators that a CPU trains have in common: their condition, their checks and their bounds.

x = clamp(f(noise, condition)),   condition = (class embedding, log alpha)        noise and x [K, C, H, W]
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from domains.imagenet.conditioning import check_condition
from domains.imagenet.generator import straight_through_clamp
from drifting.training.config import require

Range = tuple[float, float] | None


class SmallConfig(Protocol):
    """The shape of samples, how much of the noise counts, and the width of the class embedding."""

    channels: int
    size: int
    num_classes: int
    label_width: int
    noise_values: int | None
    output_range: Range


class SmallGenerator(nn.Module):
    """Noise, label and guidance scale to a sample, in one pass; a subclass says by which function."""

    def __init__(self, cfg: SmallConfig) -> None:
        super().__init__()
        self.classes = nn.Embedding(cfg.num_classes, cfg.label_width)
        self.condition_width = cfg.label_width + 1
        self.noise_width = noise_width("noise_values", cfg)
        self.cfg = cfg

    def samples(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Unbounded samples [K, C, H, W] of noise [K, noise_width] and condition [K, D]."""
        raise NotImplementedError

    def forward(self, noise: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
        """One sample per noise.

        Args:
            noise: [K, C, H, W], standard normal, in the shape of the output; `noise_values` of each count.
            labels: [K] int64.
            alpha: [K] float, guidance scale; 1 is no guidance.

        Returns:
            [K, C, H, W], float32 under autocast as well.

        Raises:
            ValueError: a shape or dtype does not fit; on the CPU also a label or alpha outside its range.
        """
        cfg = self.cfg
        expected = (len(labels), cfg.channels, cfg.size, cfg.size)
        if noise.shape != expected:
            raise ValueError(f"noise must be {list(expected)}, the shape of the output, got {tuple(noise.shape)}")
        check_condition(labels, alpha, cfg.num_classes)
        condition = torch.cat([self.classes(labels), alpha.log()[:, None]], dim=1)
        samples = self.samples(noise.flatten(1)[:, : self.noise_width], condition).float()
        return samples if cfg.output_range is None else straight_through_clamp(samples, *cfg.output_range)


def perceptron(inputs: int, hidden: int, depth: int, outputs: int) -> nn.Sequential:
    """A linear map to `hidden` values, `depth` hidden layers, and a linear map of what they hold."""
    layers: list[nn.Module] = [nn.Linear(inputs, hidden)]
    for _ in range(depth):
        layers += [nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers, nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def noise_width(name: str, cfg: SmallConfig) -> int:
    """How many numbers of the noise count; ValueError, with `name`, if there are not so many."""
    values = cfg.channels * cfg.size**2
    expected = f"in [1, channels size size = {values}], or null for all"
    require(cfg.noise_values is None or 1 <= cfg.noise_values <= values, name, expected, cfg.noise_values)
    return values if cfg.noise_values is None else cfg.noise_values


def checked_range(name: str, given: Range) -> Range:
    """The bounds of samples as a tuple, for YAML has lists only; ValueError, with `name`, unless low < high."""
    if given is None:
        return None
    low, high = given
    require(low < high, name, "[low, high] with low < high, or null", [low, high])
    return low, high
