"""One-step generator for tiny images: a multi-layer perceptron, which a CPU trains in a minute.

x = clamp(f(noise, class embedding, log alpha))        noise and x [K, C, H, W]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.imagenet.small_generator import SmallGenerator, checked_range, noise_width, perceptron
from drifting.training.config import require


@dataclass
class MlpConfig:
    """Shape of the perceptron."""

    channels: int = 1
    size: int = 8
    num_classes: int = 10
    hidden: int = 512
    depth: int = 2  # hidden layers after the first
    label_width: int = 64
    noise_values: int | None = None  # of the noise that count, null is all; images of few degrees of freedom want few
    output_range: tuple[float, float] | None = (-1.0, 1.0)  # clamp with a straight-through gradient

    def __post_init__(self) -> None:
        for name in ("channels", "size", "num_classes", "hidden", "depth", "label_width"):
            require(getattr(self, name) >= 1, f"generator.mlp.{name}", "at least 1", getattr(self, name))
        noise_width("generator.mlp.noise_values", self)
        self.output_range = checked_range("generator.mlp.output_range", self.output_range)


class MlpGenerator(SmallGenerator):
    """Noise, label and guidance scale to a sample, in one pass."""

    cfg: MlpConfig

    def __init__(self, cfg: MlpConfig) -> None:
        super().__init__(cfg)
        values = cfg.channels * cfg.size**2
        self.layers = perceptron(self.noise_width + self.condition_width, cfg.hidden, cfg.depth, values)

    def samples(self, noise: Tensor, condition: Tensor) -> Tensor:
        """noise [K, noise_width], condition [K, D] -> [K, C, H, W]."""
        cfg = self.cfg
        return self.layers(torch.cat([noise, condition], dim=1)).view(-1, cfg.channels, cfg.size, cfg.size)
