"""The generated samples of one problem shared out over ranks, so that G can grow with the cluster.

Every rank of a group holds G_r samples of the same problems, with the same positives and extra negatives. Their
features are gathered, the drift of all G is computed, and each rank takes that of its own samples: the answer of one
process with all G. What is divided is the generator's and the encoder's work; the engine's is not, and every rank holds
all G samples, which repel each other. One gather for all sets of problems.
Shapes: B problems, G_r generated on each of R ranks, G = R G_r, D features.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from drifting.arguments import DriftInputs
from drifting.walks import Drift


def gather_generated(inputs: Sequence[DriftInputs], group: ProcessGroup) -> list[DriftInputs]:
    """The same problems with the generated samples of all ranks of `group`, in the order of ranks, and their weights.

    A second batch `self_ref` is gathered likewise. Every rank must have the same shapes.
    """
    sharded = [
        {
            name: value.detach()
            for name in ("gen", "self_ref", "gen_weight")
            if (value := getattr(given, name)) is not None and value.ndim > 1  # a weight [B] is that of every sample
        }
        for given in inputs
    ]
    gathered = iter(_gather([value for own in sharded for value in own.values()], group))
    return [
        replace(given, **{name: next(gathered) for name in own}) for given, own in zip(inputs, sharded, strict=True)
    ]


def take_own(drift: Drift, group: ProcessGroup) -> Drift:
    """The part of a drift [B, G, D] that is this rank's, [B, G_r, D]."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = drift.drift.chunk(ranks, dim=1)[rank].contiguous()
    unit = drift.unit if drift.unit.shape[1] == 1 else drift.unit.chunk(ranks, dim=1)[rank]
    return replace(drift, drift=own, unit=unit)


def _gather(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    """Each [B, n, *] of all ranks behind one another, [B, R n, *]; one collective for each float type."""
    ranks = dist.get_world_size(group)
    whole: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        indices = [index for index, x in enumerate(tensors) if x.dtype == dtype]
        flat = torch.cat([tensors[index].reshape(-1) for index in indices])
        received = flat.new_empty(ranks, flat.numel())
        # The list form: the one into a tensor has another name in every other release of torch.
        dist.all_gather(list(received.unbind()), flat, group=group)
        sizes = [tensors[index].numel() for index in indices]
        for index, parts in zip(indices, received.split_with_sizes(sizes, dim=1), strict=True):
            shape = tensors[index].shape
            whole[index] = parts.reshape(ranks, *shape).transpose(0, 1).reshape(shape[0], ranks * shape[1], *shape[2:])
    return [whole[index] for index in range(len(tensors))]
