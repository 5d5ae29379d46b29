"""How close samples are to a target: energy distance, and the share of each of its regions."""

import torch
from torch import Tensor

from domains.toy.targets import Target


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over all pairs of [K, 2] and [L, 2] samples, in their unit; >= 0.

    Zero only for equal sets: two draws of one distribution give about (1/K + 1/L) E|x - x'|. Compare with that.
    """
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def region_shares(target: Target, points: Tensor) -> Tensor:
    """Share of [K, 2] points in each region, [num_regions]; sums to less than one where points lie outside all."""
    region = target.region(points)
    return torch.bincount(region[region >= 0], minlength=target.num_regions) / len(points)


def covered_regions(target: Target, points: Tensor) -> int:
    """Number of regions that hold at least half of their fair share of [K, 2] points."""
    return int((region_shares(target, points) >= 0.5 / target.num_regions).sum())
