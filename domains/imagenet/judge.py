"""Judges: small classifiers whose features measure samples; they share nothing with an encoder that trains generators.

A judge sees training images only, rotated, scaled, shifted and made noisy, so that it does not memorise them. Figures
in its feature space are called FD(judge): they compare within one run, and never with an FID.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.digits import NUM_CLASSES, LabelledImages

STEPS = 800
BATCH = 128


class Judge(nn.Module):
    """Three-layer convolutional classifier of images [K, 1, 8, 8] with a 64-d mean-pooled feature."""

    def __init__(self, num_classes: int = NUM_CLASSES, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """[K, 1, 8, 8] -> [K, 64], in parts that fit a cache."""
        return torch.cat([self.body(part) for part in images.split(1000)])

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, [K, 1, 8, 8] -> [K, C]."""
        return self.head(self.features(images))


def augmented(
    images: Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 10.0,
    shift_pixels: float = 0.5,
    scale: float = 0.1,
    noise: float = 0.3,
) -> Tensor:
    """Random rotation, shift, scaling and Gaussian noise of images in [-1, 1]; [K, 1, H, W] -> the same shape."""
    count, _, height, _ = images.shape

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, zoom = uniform(math.radians(degrees)), 1 + uniform(scale)
    shift_x, shift_y = uniform(2 * shift_pixels / height), uniform(2 * shift_pixels / height)
    rows = [
        torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift_x], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    # Zero padding is the background after the shift of -1 to 0.
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + noise * torch.randn(moved.shape, generator=generator)


def train_judge(data: LabelledImages, seed: int) -> Judge:
    """Train one judge; about 7 s on one core. Depends on `data` and `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(data), (BATCH,), generator=generator)
        logits = judge(augmented(data.images[batch], generator))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)
