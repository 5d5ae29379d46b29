"""One-step generator for small images: upsampling convolutions, in which neighbouring pixels belong together.

    h_0 = enter(noise, condition)                  on a coarse grid of w_0 channels
    h_k = block_k(upsample(h_{k-1}), condition)    twice as fine, w_k channels
    x   = clamp(head(h))                           each place of the finest grid a patch; noise and x [K, C, H, W]

enter is a linear map, or a perceptron, which sees the whole image at once and costs little beside the convolutions.
condition = (class embedding, log alpha); it scales and shifts every normalised map (FiLM, Perez et al. 2018).
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.small_generator import SmallGenerator, checked_range, noise_width, perceptron
from drifting.training.config import require

GROUP = 8  # channels that are normalised together


@dataclass
class ConvConfig:
    """Shape of the network; `widths`: channels of each grid, the coarsest first, the finest has a place per patch.

    `hidden`: width of the perceptron before the coarsest grid, of `depth` hidden layers after its first; 0 is a linear
    map.
    """

    channels: int = 1
    size: int = 28
    num_classes: int = 10
    patch: int = 2
    widths: list[int] = field(default_factory=lambda: [96, 48])
    hidden: int = 0
    depth: int = 2
    label_width: int = 64
    noise_values: int | None = None  # of the noise that count, null is all; images of few degrees of freedom want few
    output_range: tuple[float, float] | None = (-1.0, 1.0)  # clamp with a straight-through gradient

    def __post_init__(self) -> None:
        for name in ("channels", "size", "num_classes", "patch", "label_width"):
            require(getattr(self, name) >= 1, f"generator.conv.{name}", "at least 1", getattr(self, name))
        require(self.hidden >= 0, "generator.conv.hidden", "at least 1, or 0 for a linear map", self.hidden)
        require(self.depth >= 0, "generator.conv.depth", "at least 0", self.depth)
        grouped = len(self.widths) > 0 and all(width >= GROUP and width % GROUP == 0 for width in self.widths)
        require(grouped, "generator.conv.widths", f"one or more multiples of {GROUP}", self.widths)
        coarsest = self.patch * 2 ** (len(self.widths) - 1)
        expected = f"a multiple of {coarsest}, of the patch doubled once for each further grid"
        require(self.size % coarsest == 0, "generator.conv.size", expected, self.size)
        noise_width("generator.conv.noise_values", self)
        self.output_range = checked_range("generator.conv.output_range", self.output_range)


class FilmNorm(nn.Module):
    """(1 + s(c)) normalised(x) + b(c); starts as the plain normalisation."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // GROUP, channels, affine=False)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [K, C, H, W], condition [K, D] -> [K, C, H, W]."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class ConvBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int, out: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = FilmNorm(channels, condition), FilmNorm(out, condition)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [K, C, H, W], condition [K, D] -> [K, C', H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x, condition)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden, condition)))


class ConvGenerator(SmallGenerator):
    """Noise, label and guidance scale to a sample, in one pass."""

    cfg: ConvConfig

    def __init__(self, cfg: ConvConfig) -> None:
        super().__init__(cfg)
        condition = self.condition_width
        coarse = cfg.size // cfg.patch // 2 ** (len(cfg.widths) - 1)
        inputs, outputs = self.noise_width + condition, cfg.widths[0] * coarse**2
        self.enter = perceptron(inputs, cfg.hidden, cfg.depth, outputs) if cfg.hidden else nn.Linear(inputs, outputs)
        self.grid = (cfg.widths[0], coarse, coarse)
        self.blocks = nn.ModuleList(
            ConvBlock(width, out, condition) for width, out in pairwise([cfg.widths[0], *cfg.widths])
        )
        self.norm = FilmNorm(cfg.widths[-1], condition)
        self.head = nn.Conv2d(cfg.widths[-1], cfg.channels * cfg.patch**2, 3, padding=1)

    def samples(self, noise: Tensor, condition: Tensor) -> Tensor:
        """noise [K, noise_width], condition [K, D] -> [K, C, H, W]."""
        hidden = self.enter(torch.cat([noise, condition], dim=1)).unflatten(1, self.grid)
        for place, block in enumerate(self.blocks):
            if place:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = block(hidden, condition)
        return F.pixel_shuffle(self.head(F.silu(self.norm(hidden, condition))).float(), self.cfg.patch)
