"""Every dimension to [-1, 1] and back, by the smallest and largest value of the demonstrations.

The bounds are buffers: they are saved with the weights, and a policy takes and returns plain numbers.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

# Smaller ranges are constants with rounding errors: stretched to [-1, 1] they would be noise.
SMALLEST_RANGE = 1e-4


class Normalizer(nn.Module):
    """x -> (x - center) / half_range on the last dimension, [..., D] -> [..., D], and its inverse.

    A new one changes nothing until `fit`. Dimensions without a range are only shifted, to 0; dimensions that already
    have a scale of their own, such as those of 6-D rotations, are `untouched`.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, dim: int, *, untouched: Sequence[int] = ()) -> None:
        super().__init__()
        if not all(0 <= index < dim for index in untouched):
            raise ValueError(f"untouched must be dimensions in [0, {dim}), got {list(untouched)}")
        self.untouched = list(untouched)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("half_range", torch.ones(dim))

    @torch.no_grad()
    def fit(self, values: Tensor) -> Self:
        """Take the bounds of all values [..., D].

        Raises:
            ValueError: another width, no values, or values that are not finite.
        """
        dim = len(self.center)
        if values.shape[-1:] != (dim,) or values.numel() == 0:
            raise ValueError(f"values must be [..., {dim}] with at least one row, got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("values must be finite, got NaN or infinity")
        rows = values.reshape(-1, dim)
        # In float64: the middle of two large, close numbers is not representable in float32.
        low, high = rows.amin(0).double(), rows.amax(0).double()
        center, half_range = (low + high) / 2, (high - low) / 2
        half_range = torch.where(half_range < SMALLEST_RANGE / 2, 1.0, half_range)
        center[self.untouched], half_range[self.untouched] = 0.0, 1.0
        self.center.copy_(center)
        self.half_range.copy_(half_range)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Plain to normalised."""
        return (x - self.center) / self.half_range

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised to plain."""
        return x * self.half_range + self.center
