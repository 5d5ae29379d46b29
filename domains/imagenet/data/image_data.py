"""What a training set is to everything that reads it: labelled samples in any order, of any kind and size.

Shapes: N samples of shape [C, H, W], pixels or latents.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from drifting.training.errors import TrainingError


class DataError(TrainingError):
    """Training data that cannot serve what is asked of them."""


class ImageData(ABC):
    """N labelled samples of one shape: what a generator of them makes.

    labels: [N] int64, on the CPU. classes: the name of every label. sample_shape: C, H, W. dtype: of what `read`
    returns and queues keep, uint8 for pixels, float32 for latents. fingerprint: of what the set is made of; a run
    continues on the same data only.
    """

    labels: Tensor
    classes: tuple[str, ...]
    sample_shape: tuple[int, int, int]
    dtype: torch.dtype
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples [n, C, H, W] in `dtype` at indices [n] int64, on the CPU.

        `generator` draws what is random about a sample: flip, crop, the noise of a posterior. Without one a sample is
        the same every time: not flipped, cropped at the centre, the posterior's mean.
        """


def spread_over(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` samples, evenly spread, so that every class is there."""
    kept = min(count, most)
    return torch.arange(kept) * count // kept


def to_float(stored: Tensor) -> Tensor:
    """Samples as networks take them: uint8 0..255 -> float32 in [-1, 1]; floats as they are."""
    return stored.float().div_(127.5).sub_(1) if stored.dtype == torch.uint8 else stored
