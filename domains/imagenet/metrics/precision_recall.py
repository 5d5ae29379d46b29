"""Precision and recall by k-nearest-neighbour balls (Kynkaanniemi et al. 2019), without a matrix of all distances.

    precision   share of generated samples inside the ball of some real image
    recall      share of real images inside the ball of some generated sample
    ball        about every point of a set, as far as its k-th nearest other point of that set

ADM's protocol: k = 3, Inception features, float32, 50k samples against 10k reference images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ADM_NEIGHBOURS = 3
DISTANCES_AT_ONCE = 2**25  # 128 MiB in float32


def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = ADM_NEIGHBOURS, at_once: int = DISTANCES_AT_ONCE
) -> tuple[float, float]:
    """Of features generated [n, d] and real [m, d]; `at_once` distances are in memory at a time."""
    inside_real = inside_balls(generated, real, neighbours=neighbours, at_once=at_once)
    inside_generated = inside_balls(real, generated, neighbours=neighbours, at_once=at_once)
    return inside_real, inside_generated


def inside_balls(points: Tensor, centres: Tensor, *, neighbours: int, at_once: int = DISTANCES_AT_ONCE) -> float:
    """Share of points [n, d] within the `neighbours`-nearest-neighbour ball of some centre [m, d].

    Raises:
        ValueError: as few centres as neighbours.
    """
    if not 1 <= neighbours < len(centres):
        raise ValueError(f"neighbours must be in 1..{len(centres) - 1} for {len(centres)} centres, got {neighbours}")
    # A centre is its own first neighbour.
    radii = torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in distances(centres, centres, at_once)])
    return float(torch.cat([(part <= radii).any(1) for part in distances(points, centres, at_once)]).float().mean())


def distances(points: Tensor, others: Tensor, at_once: int = DISTANCES_AT_ONCE) -> Iterator[Tensor]:
    """Euclidean distances [rows, m] of points [n, d] to others [m, d], some rows at a time, in order."""
    for rows in points.split(max(1, at_once // len(others))):
        yield torch.cdist(rows, others)
