"""Images in batches, in the form that networks measure."""

from collections.abc import Iterator

import torch
from torch import Tensor

from domains.imagenet.data.image_data import ImageData


def in_batches(
    data: ImageData, batch: int, *, most: int | None = None, dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """Images without random flips or crops, `batch` at a time: all, or those of `some_of`; as stored, or as uint8."""
    for part in some_of(len(data), most).split(batch):
        images = data.read(part)
        yield to_8_bits(images, "nearest") if dtype == torch.uint8 != images.dtype else images


def some_of(count: int, most: int | None) -> Tensor:
    """Ascending indices of all of `count` images, or of `most` random ones, the same every time."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def to_8_bits(images: Tensor, rounding: str) -> Tensor:
    """Float images in [-1, 1], clipped -> uint8; `nearest`, or `truncate` as the authors and ADM do.

    Raises:
        ValueError: another rounding.
    """
    if rounding not in ("nearest", "truncate"):
        raise ValueError(f"rounding must be nearest or truncate, got {rounding!r}")
    levels = (images.float() + 1) * 127.5
    return (levels.round() if rounding == "nearest" else levels).clamp(0, 255).to(torch.uint8)
