"""Small tensors that depend on shapes alone: sent to a device once, since sending makes the host wait.

They are kept for good: a captured CUDA graph goes on reading them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_kept: dict[tuple[object, ...], Tensor] = {}


def counts_of_sets(sizes: tuple[int, ...], factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Problems of each set times `factor`, [K]; shared, not to be written to."""
    return _sent(
        ("counts", sizes, factor, dtype, device),
        lambda: torch.tensor([size * factor for size in sizes], dtype=dtype, device=device),
    )


def set_of_each_problem(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Number of the set that each problem belongs to, [B], for sets of so many problems side by side."""
    return _sent(
        ("sets", sizes, device),
        lambda: torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)], device=device),
    )


def bounds_of_sets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """First problem of each set, and behind them the number of all, [K + 1]."""
    return _sent(
        ("bounds", sizes, device),
        lambda: torch.tensor([sum(sizes[:k]) for k in range(len(sizes) + 1)], device=device),
    )


def _sent(key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
    found = _kept.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = make()
        if type(found) is Tensor:  # not the stand-in of a tracer, which is of no use to others
            _kept[key] = found
    return found
