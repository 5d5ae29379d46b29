"""Mean distance and RMS over every rank of a process group.

The authors' program is one global batch, so both normalisers are means over all labels, locations and devices. Sums and
counts are reduced, not means: ranks with different numbers of problems agree with one process.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def global_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum of `x` over ranks, elementwise, any shape; `x` itself when torch.distributed is not initialised.

    `group=None` means the default group. One all-reduce, no host sync.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total


def mean_distance(distance: Tensor, weight: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Weighted mean of all pairwise distances of the batch, paper Eq. 18-21 times sqrt(D).

    Args:
        distance: [B, G, M].
        weight: [B, M], per reference.
        group: ranks to average over.

    Returns:
        [], sum(w d) / sum(w); self pairs take part, as in the authors' code.
    """
    weighted = torch.einsum("bgm,bm->", distance, weight)
    count = weight.sum() * distance.shape[1]
    total, mass = global_sum(torch.stack([weighted, count]), group).unbind()
    return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)


def root_mean_square(drifts: list[Tensor], group: ProcessGroup | None = None) -> Tensor:
    """RMS lambda of each drift over problems, samples and channels, paper Eq. 23-25; T of [B, G, D] -> [T]."""
    squares = [drift.square().sum() for drift in drifts]
    count = squares[0].new_full((), float(drifts[0].numel()))  # on the device: a copied constant would sync
    totals = global_sum(torch.stack([*squares, count]), group)
    return (totals[:-1] / totals[-1]).sqrt()
