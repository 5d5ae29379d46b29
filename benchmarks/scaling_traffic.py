"""Bytes that the ranks of one training step exchange, by collective: as formulas, and counted while a step runs.

The bytes of a collective are its whole payload: what is reduced, what everybody has after a gather, what everybody had
before a reduce-scatter. A ring moves (R - 1) / R of it per rank for a gather or a reduce-scatter, twice that for an
all-reduce.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drifting.training.parallelize import find_blocks

FLOAT = 4
BUCKET = 25 * 2**20  # of DistributedDataParallel


class Exchange(NamedTuple):
    """Collectives of one purpose in one step."""

    purpose: str
    operation: str  # all-reduce, all-gather, reduce-scatter
    calls: int
    payload: int  # bytes of all calls together
    ranks: int  # that take part in each
    spread: int = 1  # payload lies on so many ranks, of which each exchanges its own part with its like


def loss_exchange(keys: int, temperatures: int, ranks: int) -> list[Exchange]:
    """Sum and mass of the distances of every feature, then of its drifts (`drifting.scales`)."""
    return [
        Exchange("feature scales S", "all-reduce", 1, FLOAT * keys * 2, ranks),
        Exchange("drift RMS lambda", "all-reduce", 1, FLOAT * keys * (temperatures + 1), ranks),
    ]


def generated_exchange(labels: int, generated: int, values: int, ranks: int, lots: int = 1) -> list[Exchange]:
    """Features of all generated samples of the labels that `ranks` share (`shard_generated`).

    Several lots, or parts of a batch, are visited three times: twice for their statistics.
    """
    visits = 3 if lots > 1 else 1
    payload = visits * FLOAT * labels * generated * values
    return [Exchange("generated features", "all-gather", visits * lots, payload, ranks)]


def gradient_exchange(
    module: nn.Module, mode: str, ranks: int, *, shard: int = 1, gathered: int = FLOAT, passes: int = 2
) -> list[Exchange]:
    """Of the weights and gradients in "ddp", "fsdp" or "hsdp" (groups of `shard`), as `parallelize` sets them up.

    Args:
        module: the generator; blocks are gathered one by one and given up after each pass, the rest is kept.
        mode: of the ranks.
        ranks: all of them.
        shard: ranks of a group in hsdp.
        gathered: bytes of a gathered weight: 2 in bfloat16.
        passes: through every block, forward and backward ones.
    """
    if mode == "ddp":
        payload = FLOAT * sum(p.numel() for p in module.parameters() if p.requires_grad)
        return [Exchange("gradients", "all-reduce", max(1, math.ceil(payload / BUCKET)), payload, ranks)]
    group = ranks if mode == "fsdp" else shard
    blocks = [list(block.parameters()) for block in find_blocks(module)]
    inside = {id(parameter) for block in blocks for parameter in block}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in inside]
    sizes = [_padded(parameters, group) for parameters in blocks]
    root = _padded(rest, group)
    gathers = passes * sum(sizes) + (passes - 1) * root  # kept from its last forward pass for the backward pass
    found = [
        Exchange("weights", "all-gather", passes * len(sizes) + passes - 1, gathered * gathers, group),
        Exchange("gradients", "reduce-scatter", len(sizes) + 1, FLOAT * (sum(sizes) + root), group),
    ]
    if mode == "hsdp":
        across = ranks // shard
        reduced = FLOAT * (sum(sizes) + root)
        found.append(Exchange("gradients of a shard", "all-reduce", len(sizes) + 1, reduced, across, spread=shard))
    return found


def _padded(parameters: Iterable[Tensor], ranks: int) -> int:
    """Numbers of a group of parameters, each cut along its first dimension into equal parts."""
    total = 0
    for parameter in parameters:
        rows = parameter.shape[0] if parameter.ndim else 1
        total += math.ceil(rows / ranks) * ranks * (parameter.numel() // rows)
    return total


class TrafficCount(TorchDispatchMode):
    """Calls and payload bytes of the collectives that this process takes part in while the mode is on."""

    NAMES: Mapping[str, str] = {
        "allreduce_": "all-reduce",
        "_allgather_base_": "all-gather",
        "allgather_": "all-gather",
        "_reduce_scatter_base_": "reduce-scatter",
        "reduce_scatter_": "reduce-scatter",
    }

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            operation = self.NAMES.get(name, name)
            sides = [sum(t.nbytes for t in tree_leaves(side) if isinstance(t, Tensor)) for side in args[:2]]
            self.calls[operation] += 1
            self.payload[operation] += max(sides)
        return func(*args, **(kwargs or {}))


def totals(exchanges: Iterable[Exchange]) -> dict[str, int]:
    """Bytes that one rank sees, by operation."""
    found: Counter[str] = Counter()
    for each in exchanges:
        found[each.operation] += each.payload // each.spread
    return dict(found)
