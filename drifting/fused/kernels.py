"""Triton kernels of the default field, called on tensors; each has a plain twin elsewhere.

Imported only where they run: Triton comes with torch's CUDA builds and not with the others.
Shapes: B problems, G generated, M references, R = M + G' rows of a block (G' = G where generated samples are not among
the references, else 0), D features, T temperatures, C parts of the feature axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fused import programs
from drifting.fused.fits import power_of_2

CENTRED_TILE = 2**13  # entries of the rows and features that a program centres at a time
MOST_FEATURES = 32  # of them, 128 bytes of a row
PROGRAMS = 2048  # enough to fill a large GPU: feature axes are cut where problems are fewer
SMALLEST_LOG_SUM = -0.25 * torch.finfo(torch.float32).max  # as `two_sided_affinity`: no kernel in a whole row


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def _warps(entries: int) -> int:
    return max(1, min(16, entries // 1024))


def centred(own: Tensor, neg: Tensor | None, pos: Tensor, gen: Tensor | None, out: Tensor) -> Tensor:
    """Samples minus the mean of the references, written to `out` [b, R, D]; their squared norms in parts [C, b, R].

    own [b, G', D], neg [b, N, D] and pos [b, P, D] are the references, `gen` [b, G, D] follows where it is not among
    them; any float types.
    """
    problems, rows, width = out.shape
    blocks = [None if block is None else _rows_adjacent(block) for block in (own, neg, pos, gen)]
    padded = power_of_2(rows)
    columns = min(MOST_FEATURES, CENTRED_TILE // padded)
    chunks = min(_ceil_div(width, columns), max(1, PROGRAMS // problems))
    chunk = _ceil_div(_ceil_div(width, chunks), columns) * columns
    chunks = _ceil_div(width, chunk)
    square = out.new_empty(chunks, problems, rows)
    sizes = [0 if block is None else block.shape[1] for block in blocks]
    strides = [[0, 0] if block is None else [block.stride(0), block.stride(1)] for block in blocks]
    programs.centre[(problems, chunks)](
        *(pos if block is None else block for block in blocks),  # what is not there is not read
        out,
        square,
        *sizes,
        *(stride[0] for stride in strides),
        *(stride[1] for stride in strides),
        problems,
        width,
        chunk,
        ROWS=padded,
        COLUMNS=columns,
        HAS_NEG=neg is not None,
        HAS_GEN=gen is not None,
        num_warps=_warps(padded * columns),
    )
    return square


def _rows_adjacent(block: Tensor) -> Tensor:
    """The same samples [b, K, D], the features of each side by side."""
    return block if block.stride(2) == 1 or block.shape[2] == 1 else block.contiguous()


@dataclass(frozen=True, slots=True)
class Pairs:
    """What tells the distances of b problems, without holding them."""

    inner: Tensor  # [b, G|M, M]  x_i . y_j in its first G rows
    square: Tensor  # [C, b, R]  |y|^2, and |x|^2 behind them where generated samples are not among the references
    weight: Tensor | None  # [b, M]  w_j; None is 1
    num_gen: int
    num_refs: int
    num_negative: int  # columns that repel, the first
    self_is_gen: bool  # whether the first G references are the generated samples
    smallest: float  # clip of the squared distance, and that of a sample to itself

    @property
    def tile(self) -> tuple[int, int]:
        """Sides of the padded [G, M] tile."""
        return power_of_2(max(self.num_gen, 2)), power_of_2(max(self.num_refs, 2))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Sizes and strides, in the order of the programs' arguments behind G and M."""
        parts, problems, rows = self.square.shape
        own_begin = 0 if self.self_is_gen else self.num_refs
        return rows, problems, parts, *self.inner.stride()[:2], own_begin


def distance_sums(pairs: Pairs, *, out: Tensor) -> None:
    """sum_ij w_j d_ij and sum_ij w_j of every problem, written to `out` [b, 2]."""
    gen_side, refs_side = pairs.tile
    programs.distance_sums[(len(out),)](
        pairs.inner, pairs.square, _or(pairs.weight, out), out, pairs.num_gen, pairs.num_refs, *pairs.numbers,
        pairs.smallest, GEN=gen_side, REFS=refs_side, SELF=pairs.self_is_gen, WEIGHTED=pairs.weight is not None,
        num_warps=_warps(gen_side * refs_side),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings of a `MeanShift`."""

    mask_self: bool  # whether a sample's affinity to itself is zero
    floor: float
    attraction: float
    repulsion: float  # another one than `attraction` needs generated samples among the references


def mean_shift(
    pairs: Pairs,
    distance_unit: Tensor | None,
    temperatures: Tensor,
    rule: Rule,
    *,
    out: Tensor,
    contact: Tensor | None,
) -> None:
    """Coefficients of `MeanShift` at every temperature, written to `out` [b, T, G, M]; every row sums to zero.

    Args:
        pairs: distances.
        distance_unit: what distances are divided by, [b] of any stride; None divides by nothing.
        temperatures: [T].
        rule: of the field.
        out: coefficients.
        contact: [T, b, 3] for the masses of positives and of negatives and the share on the floor; None: not wanted.
    """
    gen_side, refs_side = pairs.tile
    programs.couplings[(len(out), len(temperatures))](
        pairs.inner, pairs.square, _or(pairs.weight, out), _or(distance_unit, out), temperatures, out,
        _or(contact, out), pairs.num_gen, pairs.num_refs, pairs.num_negative, *pairs.numbers,
        0 if distance_unit is None else distance_unit.stride(0), len(temperatures), pairs.smallest,
        SMALLEST_LOG_SUM, rule.floor, rule.attraction, rule.repulsion, GEN=gen_side, REFS=refs_side,
        SELF=pairs.self_is_gen, MASKED=rule.mask_self, WEIGHTED=pairs.weight is not None,
        SCALED=distance_unit is not None, FLOORED=rule.floor > 0, UNBALANCED=rule.attraction != rule.repulsion,
        CONTACT=contact is not None, num_warps=_warps(gen_side * refs_side),
    )  # fmt: skip


def row_products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of rows, contiguous [r, L] -> [r]."""
    rows, size = x.shape
    width = min(1024, power_of_2(size))
    parts = min(_ceil_div(size, width), max(1, PROGRAMS // rows))
    chunk = _ceil_div(_ceil_div(size, parts), width) * width
    parts = _ceil_div(size, chunk)
    out = x.new_empty(rows, parts)
    programs.row_products[(rows, parts)](x, y, out, size, chunk, parts, WIDTH=width, num_warps=max(1, width // 256))
    return out[:, 0] if parts == 1 else out.sum(1)


def superpose(
    drifts: Tensor, unit: Tensor, mean_square: Tensor | None, gain: float, *, smallest: float, out: Tensor
) -> None:
    """gain / S sum_t x_t / lambda_t, written to `out` [b, L].

    Args:
        drifts: x, contiguous [b, T, L].
        unit: S, [b] of any stride.
        mean_square: lambda^2, [b, T] of any stride along b; None divides by nothing.
        gain: factor.
        smallest: of lambda^2.
        out: the sum.
    """
    problems, temperatures, size = drifts.shape
    width = min(1024, power_of_2(size))
    parts = _ceil_div(size, width)
    programs.superpose[(problems * parts,)](
        drifts, unit, _or(mean_square, out), out, gain, smallest, size, parts, temperatures, unit.stride(0),
        0 if mean_square is None else mean_square.stride(0), WIDTH=width, NORMALIZED=mean_square is not None,
        num_warps=max(1, width // 256),
    )  # fmt: skip


def sums_of_sets(values: Tensor, bounds: Tensor) -> Tensor:
    """Sums [K, T] of values [b, T] over rows bounds[k] .. bounds[k + 1], [K + 1]; one set's NaN stays in it."""
    count, temperatures = len(bounds) - 1, values.shape[1]
    out = values.new_empty(count, temperatures)
    programs.sums_of_sets[(count, temperatures)](values, bounds, out, temperatures, WIDTH=1024, num_warps=4)
    return out


def _or(given: Tensor | None, other: Tensor) -> Tensor:
    """What a program that does not read it is given in its place."""
    return other if given is None else given
