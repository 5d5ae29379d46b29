"""The networks of judges, by the size of the images, and how each is trained.

Below 16 pixels a side three convolutions; above, a residual network that begins with strides of 2, or of 4 from 40
pixels on. Images of more than 64 pixels a side are averaged down to 64 first: judges are to be had in minutes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_SIDE = 64


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Uniform in +- `degrees`, `shift_pixels` and `scale`; Gaussian `noise`; `flip`: half of the images, left to right.

    photographs: what moves in from outside is the mirrored image; else it is the background, -1.
    """

    degrees: float = 10.0
    shift_pixels: float = 0.5
    scale: float = 0.1
    noise: float = 0.3
    flip: bool = False
    photographs: bool = False


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    """Architecture and training; widths empty: the small network."""

    steps: int
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.0  # share of the steps
    widths: tuple[int, ...] = ()
    stride: int = 1
    augmentation: Augmentation = Augmentation()

    def build(self, channels: int, num_classes: int) -> "JudgeNetwork":
        """A new network."""
        body = residual_body(channels, self.widths, self.stride) if self.widths else small_body(channels)
        network = JudgeNetwork(body, self.widths[-1] if self.widths else SMALL_FEATURES, num_classes)
        # The small network's numbers are those of the README; the others are faster so, by a fifth.
        return network.to(memory_format=torch.channels_last) if self.widths else network

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Linear warm-up, then a cosine to zero."""
        if not self.warmup:
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=self.steps + 1, pct_start=self.warmup, cycle_momentum=False
        )

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [k, C, H, W] in [-1, 1] as the network sees them in training."""
        return augmented(shrunk(images), generator, self.augmentation)


class JudgeNetwork(nn.Module):
    """`body`: images [k, C, H, W] in [-1, 1] -> features [k, d]; `head`: class logits."""

    def __init__(self, body: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[k, C, H, W] -> [k, c]."""
        logits: Tensor = self.head(self.body(images))
        return logits


SMALL_WIDTH = 32
SMALL_FEATURES = 2 * SMALL_WIDTH


def judge_recipe(sample_shape: tuple[int, int, int], steps: int | None = None) -> JudgeRecipe:
    """The recipe for images [C, H, W]; `steps` in place of its own."""
    channels, height, width = sample_shape
    side = min(max(height, width), LARGEST_SIDE)
    if side < 16:
        return JudgeRecipe(steps=steps or 800)
    photographs = channels == 3
    # Few epochs over a large set: what is moved much is learnt late.
    moving = (
        Augmentation(degrees=0, shift_pixels=side / 16, scale=0.2, noise=0.1, flip=True, photographs=True)
        if photographs
        else Augmentation(degrees=5, shift_pixels=1, scale=0.05, noise=0.05)
    )
    if side < 40:
        return JudgeRecipe(
            steps=steps or 1500, batch=64, warmup=0.2, lr=4e-3, widths=(24, 48, 96), stride=2, augmentation=moving
        )
    return JudgeRecipe(
        steps=steps or 1000, warmup=0.2, lr=4e-3, weight_decay=0.05, widths=(32, 64, 128), stride=4, augmentation=moving
    )


def small_body(channels: int) -> nn.Sequential:
    """Three convolutions, mean-pooled: [k, C, H, W] -> [k, 64]."""
    width = SMALL_WIDTH
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def residual_body(channels: int, widths: tuple[int, ...], stride: int) -> nn.Sequential:
    """A strided convolution, then a residual block per width, each after the first at half the side; mean-pooled."""
    stem = nn.Conv2d(channels, widths[0], stride + 2, stride=stride, padding=1, bias=False)
    blocks = [
        ResidualBlock(before, after, stride=1 if index == 0 else 2)
        for index, (before, after) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True))
    ]
    ending = [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(Shrink(), stem, *blocks, *ending)


class ResidualBlock(nn.Module):
    """x -> shortcut(x) + two convolutions, each after norm and ReLU (pre-activation)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[k, before, h, w] -> [k, after, h / stride, w / stride], rounded up."""
        active = F.relu(self.norm1(x))
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        shortcut: Tensor = self.shortcut(x if isinstance(self.shortcut, nn.Identity) else active)
        return residual + shortcut


class Shrink(nn.Module):
    """Averages images of more than 64 pixels a side down to 64."""

    def forward(self, images: Tensor) -> Tensor:
        """[k, C, H, W] -> [k, C, <= 64, <= 64]."""
        return shrunk(images)


def shrunk(images: Tensor) -> Tensor:
    """Images [k, C, H, W] averaged to at most 64 pixels a side."""
    height, width = images.shape[2:]
    longest = max(height, width)
    if longest <= LARGEST_SIDE:
        return images
    size = (round(height * LARGEST_SIDE / longest), round(width * LARGEST_SIDE / longest))
    return F.interpolate(images, size=size, mode="area")


def augmented(images: Tensor, generator: torch.Generator, by: Augmentation) -> Tensor:
    """Random rotation, shift, scaling, flip and noise of images in [-1, 1]; [k, C, H, W] -> the same shape."""
    count, _, height, _ = images.shape

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, zoom = uniform(math.radians(by.degrees)), 1 + uniform(by.scale)
    shift_x, shift_y = uniform(2 * by.shift_pixels / height), uniform(2 * by.shift_pixels / height)
    mirror = uniform(1.0).sign() if by.flip else torch.ones(count)
    rows = [
        torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), shift_x], dim=1),
        torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    padding = "reflection" if by.photographs else "zeros"
    # Zero padding is the background after the shift of -1 to 0.
    moved = F.grid_sample(images + 1, grid, align_corners=False, padding_mode=padding) - 1
    return moved + by.noise * torch.randn(moved.shape, generator=generator)
