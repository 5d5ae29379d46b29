"""Samples in [-1, 1] as networks that were trained on ImageNet photographs expect them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.transformer import at_least_float32

# Channel statistics of ImageNet in [0, 1], RGB, as every public checkpoint uses them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImagenetInput(nn.Module):
    """((x + 1) / 2 - mean) / std, then bilinear to size x size; not clipped, so that a gradient reaches every pixel.

    Args:
        size: side of the result; None leaves the size alone. Shrinking is antialiased.
        mean, std: of each channel in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, size: int | None, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise ValueError(f"size must be >= 1, or None to leave the size of the samples alone, got {size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, std positive, got {mean} and {std}")
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples [K, 3, H, W] -> [K, 3, size, size], float32 (float64 stays).

        Raises:
            ValueError: samples of another shape.
        """
        if samples.ndim != 4 or samples.shape[1] != 3:
            raise ValueError(f"samples must be RGB images [K, 3, H, W] in [-1, 1], got shape {tuple(samples.shape)}")
        x = ((at_least_float32(samples) + 1) / 2 - self.mean) / self.std
        if self.size is None or x.shape[2:] == (self.size, self.size):
            return x
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
