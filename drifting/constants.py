"""Small tensors that depend on shapes and settings alone: sent to a device once, since sending makes the host wait."""

import functools

import torch
from torch import Tensor

MOST_KEPT = 256  # of each function; the oldest goes


@functools.lru_cache(MOST_KEPT)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as a tensor [K] that everybody shares: not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(MOST_KEPT)
def set_of_each_problem(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Number of the set that each problem belongs to, [B], for sets of so many problems side by side."""
    with torch.inference_mode(False):
        numbers = [k for k, size in enumerate(sizes) for _ in range(size)]
        return torch.tensor(numbers, dtype=torch.int64, device=device)


@functools.lru_cache(MOST_KEPT)
def bounds_of_sets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """First problem of each set, and behind them the number of all, [K + 1]."""
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    with torch.inference_mode(False):
        return torch.tensor(bounds, dtype=torch.int64, device=device)
