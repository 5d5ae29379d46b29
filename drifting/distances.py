"""Distances from generated samples to references, by dot products of centred coordinates.

Shapes: b problems, G generated, M references, D features.
"""

import torch
from torch import Tensor

from drifting.fields import Columns
from drifting.native import kernels as native
from drifting.problems import Block, ProblemGroup, part

SMALLEST_SQUARED_DISTANCE = 1e-8  # the authors' clip; keeps the root away from the rounding of the dot products


def pairwise_distance(block: Block, gram: Tensor | None, *, out: Tensor) -> Tensor:
    """|x_i - y_j| of one block, written to `out` [b, G, M]; returns the weighted sum of every row, [b, G].

    Exact to rounding only for centred coordinates: an offset of 1000 costs every float32 digit.

    Args:
        block: the problems.
        gram: y_i . y_j of all references, [b, M, M], saves the products where generated samples are among them.
        out: [b, G, M].
    """
    num_gen, columns = block.gen.shape[1], block.columns
    if gram is not None and columns.self_is_gen:
        inner = gram[:, :num_gen]
    else:
        inner = torch.bmm(block.gen, block.refs.mT, out=out)
    if native.usable(inner):
        weight = columns.weight if columns.is_weighted else None
        row_sum = out.new_empty(out.shape[:2])
        native.distances(
            inner,
            block.gen_square,
            block.square,
            weight,
            out,
            row_sum,
            smallest=SMALLEST_SQUARED_DISTANCE,
            self_is_gen=columns.self_is_gen,
        )
        return row_sum
    torch.add(block.square[:, None, :], inner, alpha=-2, out=out)
    out.add_(block.gen_square[:, :, None]).clamp_(min=SMALLEST_SQUARED_DISTANCE).sqrt_()
    if columns.self_is_gen:
        # Exactly the clip: dot products leave a self distance of sqrt(rounding), which would bias the mean distance.
        out[..., :num_gen].diagonal(dim1=-2, dim2=-1).fill_(SMALLEST_SQUARED_DISTANCE**0.5)
    return (out * columns.weight[:, None, :]).sum(-1) if columns.is_weighted else out.sum(-1)


def distance_of_small(group: ProblemGroup, rows: slice, *, out: Tensor) -> Tensor:
    """The same for some problems of a group of small ones, from differences of coordinates."""
    row_sum = out.new_empty(out.shape[:2])
    columns = group.columns(rows)
    for here, gen, blocks in group.pieces(rows):
        weight = part(columns.weight, here) if columns.is_weighted else None
        results = part(out, here), part(row_sum, here)
        native.distances_of_small(gen, blocks, weight, *results, smallest=SMALLEST_SQUARED_DISTANCE)
    return row_sum


def mean_distance_of_samples(distance: Tensor, columns: Columns) -> Tensor:
    """Weighted mean distance of every generated sample to the others and to positives; [b, G, M] -> [b, G].

    Neither the sample itself nor extra negatives take part.
    """
    weight = columns.weight[:, None, :].expand_as(distance).clone()
    weight[..., columns.num_self : columns.num_negative] = 0
    if columns.self_is_gen:
        weight[..., : columns.num_self].diagonal(dim1=-2, dim2=-1).zero_()
    return (distance * weight).sum(-1) / weight.sum(-1).clamp(min=torch.finfo(weight.dtype).tiny)
