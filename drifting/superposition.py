"""Sums of drifts whose weights are known only after the last problem: V = sum_tau w_tau V_tau, w_tau = 1 / lambda_tau.

lambda_tau is the RMS of V_tau over the whole batch, so every problem is visited twice. What is kept in between:

    `KeptDrifts`        V_tau of every temperature. T products c Y, and T times the memory of the samples.
    `KeptCoefficients`  c_tau of every temperature, and the Gram matrix K = Y Y^T, which gives |V_tau|^2 = c K c^T
                        without V_tau. One product c Y in all: less work and less memory for wide features.

Shapes: B problems, G generated, M references, D features, T temperatures; b problems of a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from drifting.fields import Coupling
from drifting.problems import Block, ProblemGroup


def displacement(coupling: Coupling, block: Block, out: Tensor) -> Tensor:
    """V_i = sum_j c_ij (y_j - x_i) of one block, written to `out` [b, G, D], in the references' coordinates."""
    torch.bmm(coupling.coefficients, block.refs, out=out)
    if not coupling.balanced:
        out.addcmul_(coupling.coefficients.sum(-1, keepdim=True), block.gen, value=-1)
    return out


def gram_saves(group: ProblemGroup, num_temperatures: int) -> bool:
    """Whether `KeptCoefficients` needs fewer multiplications per problem than `KeptDrifts`, distances included."""
    g, m, d, t = group.num_gen, group.num_refs, group.width, num_temperatures
    distances = 0 if group.self_is_gen else g * m * d
    return m * m * d + distances + t * g * m * m + g * m * d < (1 + t) * g * m * d


class KeptDrifts:
    """Keeps the drift of every temperature."""

    def __init__(self, group: ProblemGroup, num_temperatures: int) -> None:
        self.group = group
        self.drifts = [group.empty(len(group), group.num_gen, group.width) for _ in range(num_temperatures)]

    def add(self, rows: slice, couplings: Sequence[Coupling]) -> list[Tensor]:
        """Take the couplings of some problems at all temperatures; returns |V_tau|^2 of each sample, T of [b, G]."""
        block = self.group.block(rows)
        squares = []
        for kept, coupling in zip(self.drifts, couplings, strict=True):
            drift = displacement(coupling, block, kept[rows])
            squares.append(torch.linalg.vector_norm(drift, dim=-1).square_())
        return squares

    def total(self, weights: Sequence[Tensor]) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for T weights [B, 1|G, 1]. What was kept is used up."""
        first, *others = self.drifts
        for rows in self.group.row_slices():
            total = first[rows].mul_(weights[0][rows])
            for kept, weight in zip(others, weights[1:], strict=True):
                total.addcmul_(kept[rows], weight[rows])
        self.drifts = []
        return first


class KeptCoefficients:
    """Keeps the coefficients of every temperature; needs balanced rows, or self pairs among the references.

    Args:
        group: the problems.
        num_temperatures: T.
        gram: inner products of all references, [B, M, M].
    """

    def __init__(self, group: ProblemGroup, num_temperatures: int, gram: Tensor) -> None:
        self.group = group
        self.gram = gram
        shape = (len(group), group.num_gen, group.num_refs)
        self.coefficients = [group.empty(*shape) for _ in range(num_temperatures)]

    def add(self, rows: slice, couplings: Sequence[Coupling]) -> list[Tensor]:
        """Take the couplings of some problems at all temperatures; returns |V_tau|^2 of each sample, T of [b, G]."""
        squares = []
        for kept, coupling in zip(self.coefficients, couplings, strict=True):
            own = kept[rows].copy_(coupling.coefficients)
            if not coupling.balanced:
                # y_i - x_i = 0: what the self pair gets moves nothing, and makes the row sum to zero.
                own[..., : self.group.num_gen].diagonal(dim1=-2, dim2=-1).sub_(own.sum(-1))
            squares.append(torch.bmm(own, self.gram[rows]).mul_(own).sum(-1).clamp_(min=0))
        return squares

    def total(self, weights: Sequence[Tensor]) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for T weights [B, 1|G, 1]. What was kept is used up."""
        del self.gram
        drift = self.group.empty(len(self.group), self.group.num_gen, self.group.width)
        first, *others = self.coefficients
        for rows in self.group.row_slices():
            total = first[rows].mul_(weights[0][rows])
            for kept, weight in zip(others, weights[1:], strict=True):
                total.addcmul_(kept[rows], weight[rows])
            torch.bmm(total, self.group.block(rows).refs, out=drift[rows])
        self.coefficients = []
        return drift
