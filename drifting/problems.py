"""Drifting problems on their way through the engine: sets of equal shape side by side, a few problems at a time.

The engine never copies a batch as a whole. It walks over blocks of problems and brings each block into one float type
and one coordinate frame, in memory small enough to stay in the cache (CPU) or in a budget (accelerators).
Shapes: B problems, G generated, G' of the self block, N extra negatives, P positives, M = G' + N + P references,
D features; b problems of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from drifting.constants import counts_of_sets, set_of_each_problem
from drifting.fields import Columns
from drifting.native import kernels as native

# Working memory of one block in bytes. CPU, for each thread: a core's share of the last-level cache, so that references
# and [G, M] tiles stay there from one product to the next; but no more than a share of the samples' own size, so that
# working memory stays small beside them. Accelerator: enough work to fill it.
CPU_BLOCK = 4 * 2**20
SMALLEST_CPU_BLOCK = 2**19
CPU_BLOCK_SHARE = 1 / 4
ACCELERATOR_BLOCK = 256 * 2**20
# Multiplications of one product [G, D] x [D, M] up to which a problem is better visited as it is: the overhead of a
# library's matrix product is as long as the product.
SMALL_PROBLEM = 2**14


@dataclass(frozen=True, slots=True)
class Problems:
    """One set of B problems that share a feature scale and a drift RMS, as given: any float types, uncentred."""

    gen: Tensor  # [B, G, D]
    blocks: tuple[Tensor, ...]  # self [B, G', D] (gen itself without a second batch), extra negatives if any, positives
    columns: Columns

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the mathematics: float64 for float64 samples, float32 for all others."""
        return torch.float64 if self.gen.dtype == torch.float64 else torch.float32

    @property
    def signature(self) -> tuple[object, ...]:
        """Sets of equal signature can be processed side by side."""
        columns = self.columns
        sizes = (columns.num_self, columns.num_neg, columns.num_pos)
        weighted = (columns.weighted.start, columns.weighted.stop)
        return (*self.gen.shape[1:], *sizes, columns.self_is_gen, *weighted, self.dtype, self.gen.device)


@dataclass(frozen=True, slots=True)
class Block:
    """A few problems in one float type, each centred on the mean of its references."""

    rows: slice  # which problems of the group
    gen: Tensor  # [b, G, D]
    refs: Tensor  # [b, M, D]
    gen_square: Tensor  # [b, G]  |x|^2
    square: Tensor  # [b, M]  |y|^2
    columns: Columns


class ProblemGroup:
    """Sets of equal signature, side by side along the problem axis; `len` is the number of problems in all.

    Args:
        sets: one or more, of one signature.
        tiles: how many [G, M] tiles a block works with beside its references.
    """

    def __init__(self, sets: Sequence[Problems], tiles: int) -> None:
        first = sets[0]
        self.sets = sets
        self.sizes = [len(problems.gen) for problems in sets]
        self.num_gen, self.width = first.gen.shape[1:]
        self.num_refs = first.columns.weight.shape[-1]
        self.self_is_gen = first.columns.self_is_gen
        self.dtype, self.device = first.dtype, first.gen.device
        weights = [problems.columns.weight for problems in sets]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # [B, M]
        self.is_small = native.usable(self.weight) and self.num_gen * self.num_refs * self.width <= SMALL_PROBLEM
        floats = tiles * self.num_gen * self.num_refs
        if not self.is_small:  # small problems are visited where they are
            floats += (self.num_refs + (0 if self.self_is_gen else self.num_gen)) * self.width
        self.block_size = min(len(self), max(1, self._budget() // (floats * self.dtype.itemsize)))

    def _budget(self) -> int:
        """Bytes of working memory for one block."""
        if self.device.type != "cpu":
            return ACCELERATOR_BLOCK
        samples = len(self) * self.num_gen * self.width * self.dtype.itemsize
        # Few samples: a whole block costs little memory, and small ones would cost overhead.
        block = (
            CPU_BLOCK
            if samples < CPU_BLOCK / 2
            else min(CPU_BLOCK, max(SMALLEST_CPU_BLOCK, int(CPU_BLOCK_SHARE * samples)))
        )
        return block * torch.get_num_threads()

    @cached_property
    def _centre(self) -> Tensor:
        """Means over references, [B, 1, D]."""
        return self.empty(len(self), 1, self.width)

    @cached_property
    def _scratch(self) -> tuple[Tensor, Tensor]:
        """Memory of one block: centred samples [b, M (+ G), D] and their squared norms [b, M (+ G)]."""
        samples = self.num_refs + (0 if self.self_is_gen else self.num_gen)
        return self.empty(self.block_size, samples, self.width), self.empty(self.block_size, samples)

    def __len__(self) -> int:
        return sum(self.sizes)

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised [*shape] in the type and on the device of the mathematics."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def sum_over_sets(self, values: Tensor) -> Tensor:
        """Values of problems [B, *] -> sums of sets [K, *]."""
        if len(self.sizes) == 1:
            return values.sum(0, keepdim=True)
        return torch.stack([part.sum(0) for part in values.split_with_sizes(self.sizes)])

    def counts(self, factor: int) -> Tensor:
        """Problems of each set times `factor`, [K]; not to be written to."""
        return counts_of_sets(tuple(self.sizes), factor, self.dtype, self.device)

    def spread_over_problems(self, values: Tensor) -> Tensor:
        """Values of sets [K, *] -> of their problems [B, *]."""
        if len(self.sizes) == 1:
            return values.expand(len(self), *values.shape[1:])
        if self.device.type == "cuda":  # one kernel however many sets there are
            return values[set_of_each_problem(tuple(self.sizes), self.device)]
        return torch.cat([value.expand(size, *value.shape) for value, size in zip(values, self.sizes, strict=True)])

    def row_slices(self) -> list[slice]:
        """Blocks of problems in order, as even as possible: a small last block would cost as much as a large one."""
        count = -(-len(self) // self.block_size)
        bounds = [len(self) * i // count for i in range(count + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def columns(self, rows: slice) -> Columns:
        """What the reference columns of some problems are."""
        return replace(self.sets[0].columns, weight=part(self.weight, rows))

    def block(self, rows: slice, *, find_centre: bool = False) -> Block:
        """Some problems, in memory that the next call overwrites; `find_centre` on the first visit of the problems."""
        size = rows.stop - rows.start
        scratch, square = (memory[:size] for memory in self._scratch)
        for here, gen, blocks in self.pieces(rows):
            centre = self._centre[rows][here]
            # Distances and displacements do not see translations; rounding does.
            if find_centre:
                mean_over_blocks(blocks, out=centre)
            column = 0
            for block in blocks if self.self_is_gen else (*blocks, gen):
                columns = slice(column, column + block.shape[1])
                centre_samples(block, centre, scratch[here, columns], square[here, columns])
                column += block.shape[1]
        own = slice(0, self.num_gen) if self.self_is_gen else slice(self.num_refs, None)
        return Block(
            rows=rows,
            gen=scratch[:, own],
            refs=scratch[:, : self.num_refs],
            gen_square=square[:, own],
            square=square[:, : self.num_refs],
            columns=self.columns(rows),
        )

    def pieces(self, rows: slice) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Some problems as given, set by set: rows within `rows`, gen [b, G, D] and blocks of references [b, K, D].

        All contiguous and of one float type; copies only where the given ones are not.
        """
        for here, problems, own in self.spans(rows):
            blocks = [part(block, own).to(self.dtype).contiguous() for block in problems.blocks]
            gen = blocks[0] if self.self_is_gen else part(problems.gen, own).to(self.dtype).contiguous()
            yield here, gen, blocks

    def spans(self, rows: slice) -> Iterator[tuple[slice, Problems, slice]]:
        """The sets that some problems are of: rows within `rows`, the set, and which rows of it."""
        first = 0
        for problems, size in zip(self.sets, self.sizes, strict=True):
            start, stop = max(rows.start, first), min(rows.stop, first + size)
            if start < stop:
                yield slice(start - rows.start, stop - rows.start), problems, slice(start - first, stop - first)
            first += size


def part(values: Tensor, rows: slice) -> Tensor:
    """values[rows], for a range within [B, *]; `values` themselves where that is all of them: calls cost time."""
    return values if rows.stop - rows.start == len(values) else values[rows]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What blocks of problems gave, [b, *] each, as one [B, *]."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def mean_over_blocks(blocks: Sequence[Tensor], *, out: Tensor) -> None:
    """Mean over the samples of all blocks [b, K, D], written to `out` [b, 1, D]; all contiguous."""
    if native.usable(out):
        out.zero_()
        for block in blocks:
            native.add_samples(block, out)
    else:
        torch.sum(blocks[0], dim=1, keepdim=True, out=out)
        for block in blocks[1:]:
            out += block.sum(1, keepdim=True)
    out /= sum(block.shape[1] for block in blocks)


def centre_samples(raw: Tensor, centre: Tensor, out: Tensor, square: Tensor) -> None:
    """out = raw - centre and square = |out|^2; raw [b, K, D], centre [b, 1, D] -> out [b, K, D], square [b, K]."""
    if native.usable(out):
        native.centre_samples(raw, centre, out, square)
        return
    torch.sub(raw, centre, out=out)
    torch.linalg.vector_norm(out, dim=-1, out=square).square_()
