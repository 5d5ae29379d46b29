"""One-step generator for tiny images: a multi-layer perceptron, which a CPU trains in a minute.

x = clamp(f(noise, class embedding, log alpha))        noise and x [K, C, H, W]
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domains.imagenet.conditioning import check_condition
from domains.imagenet.generator import straight_through_clamp
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
    output_range: tuple[float, float] | None = (-1.0, 1.0)  # clamp with a straight-through gradient

    def __post_init__(self) -> None:
        for name in ("channels", "size", "num_classes", "hidden", "depth", "label_width"):
            require(getattr(self, name) >= 1, f"generator.mlp.{name}", "at least 1", getattr(self, name))
        if self.output_range is not None:
            low, high = self.output_range  # YAML has lists only
            require(low < high, "generator.mlp.output_range", "[low, high] with low < high, or null", [low, high])
            self.output_range = (low, high)


class MlpGenerator(nn.Module):
    """Noise, label and guidance scale to a sample, in one pass."""

    def __init__(self, cfg: MlpConfig) -> None:
        super().__init__()
        self.cfg = cfg
        values = cfg.channels * cfg.size**2
        self.classes = nn.Embedding(cfg.num_classes, cfg.label_width)
        layers: list[nn.Module] = [nn.Linear(values + cfg.label_width + 1, cfg.hidden)]
        for _ in range(cfg.depth):
            layers += [nn.LayerNorm(cfg.hidden), nn.SiLU(), nn.Linear(cfg.hidden, cfg.hidden)]
        layers += [nn.LayerNorm(cfg.hidden), nn.SiLU(), nn.Linear(cfg.hidden, values)]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
        """One sample per noise.

        Args:
            noise: [K, C, H, W], standard normal, in the shape of the output.
            labels: [K] int64.
            alpha: [K] float, guidance scale; 1 is no guidance.

        Returns:
            [K, C, H, W], float32 under autocast as well.

        Raises:
            ValueError: a shape or dtype does not fit; on the CPU also a label or alpha outside its range.
        """
        expected = (len(labels), self.cfg.channels, self.cfg.size, self.cfg.size)
        if noise.shape != expected:
            raise ValueError(f"noise must be {list(expected)}, the shape of the output, got {tuple(noise.shape)}")
        check_condition(labels, alpha, self.cfg.num_classes)
        condition = [self.classes(labels), alpha.log()[:, None]]
        samples = self.layers(torch.cat([noise.flatten(1), *condition], dim=1)).float().view_as(noise)
        return samples if self.cfg.output_range is None else straight_through_clamp(samples, *self.cfg.output_range)
