"""What the two normalisers are means over: a sample, a problem, or the batch on every rank of a process group.

The authors' program is one global batch, so both normalisers are means over all labels, locations and devices. Sums and
counts are reduced, not means: ranks with different numbers of problems agree with one process.
Shapes: K sets of problems (one per feature), B problems of one set, G generated.
"""

from collections.abc import Sequence
from enum import Enum

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Extent(Enum):
    """What one normaliser is shared by."""

    BATCH = "batch"
    """All problems of a feature, on every rank: the paper's choice and the default."""
    PROBLEM = "problem"
    """One problem. Problems do not see each other; a feature whose problems differ in size is evened out."""
    SAMPLE = "sample"
    """One generated sample. Its feature scale leaves out the sample itself and extra negatives."""


def num_ranks(group: ProcessGroup | None = None) -> int:
    """Ranks that share a batch; 1 when torch.distributed is not initialised. `group=None` means the default group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def global_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum of `x` over ranks, elementwise, any shape; `x` itself when torch.distributed is not initialised.

    `group=None` means the default group. One all-reduce, no host sync.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total


def global_mean(parts: Sequence[tuple[Tensor, Tensor]], group: ProcessGroup | None = None) -> Tensor:
    """sum / mass over every rank, with one all-reduce for all.

    Args:
        parts: sums [K] or [K, T] and masses [K] or [K, 1], of as many groups of sets as there are.
        group: ranks to sum over.

    Returns:
        [sum of all K, T], T = 1 for sums [K]; 0 where there is no mass.
    """
    if len(parts) == 1 and num_ranks(group) == 1:
        ((total, mass),) = parts
        return total.view(len(total), -1) / mass.view(-1, 1).clamp(min=torch.finfo(total.dtype).tiny)
    reduced = torch.cat([torch.cat([x.view(len(x), -1) for x in part], dim=1) for part in parts])  # [K, T + 1]
    sums, mass = global_sum(reduced, group).split_with_sizes((reduced.shape[1] - 1, 1), dim=1)
    return sums / mass.clamp(min=torch.finfo(reduced.dtype).tiny)
