"""A small set of images that is held in memory."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from domains.imagenet.data.image_data import ImageData, to_float


@dataclass(frozen=True)
class LabelledImages(ImageData):
    """Images [N, C, H, W], float32 in [-1, 1] or uint8, and labels [N] int64. No flips, no crops."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()  # empty: the numbers

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"labels must be one for each of {len(self.images)} images, got {len(self.labels)}")
        if not self.classes:
            count = int(self.labels.max()) + 1 if len(self.labels) else 0
            object.__setattr__(self, "classes", tuple(str(label) for label in range(count)))

    @property
    def sample_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """C, H, W."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the images."""
        return self.images.dtype

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of images and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def read(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [n, C, H, W] at `indices`; nothing about them is random."""
        return self.images[indices]

    def subset(self, index: Tensor) -> "LabelledImages":
        """The images at `index` [K], or where `index` [N] is true."""
        return LabelledImages(self.images[index], self.labels[index], self.classes)


def in_memory(data: ImageData) -> LabelledImages:
    """All of a set that fits in memory, as float32 in [-1, 1]."""
    return LabelledImages(to_float(data.read(torch.arange(len(data)))), data.labels, data.classes)
