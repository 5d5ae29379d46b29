"""Sums of drifts whose weights are known only after the last problem: V = sum_tau w_tau V_tau, w_tau = 1 / lambda_tau.

lambda_tau is the RMS of V_tau over the whole batch, so every problem is visited twice. What is kept in between:

    `KeptDrifts`        V_tau of every temperature. T products c Y, and T times the memory of the samples.
    `KeptCoefficients`  c_tau of every temperature, and the Gram matrix K = Y Y^T, which gives |V_tau|^2 = c K c^T
                        without V_tau. One product c Y in all: less work and less memory for wide features.
    `KeptForSmall`      c_tau of every temperature. V_tau is computed for its norm and forgotten, without a library's
                        matrix product, whose overhead would be the larger part.

Shapes: B problems, G generated, M references, D features, T temperatures; b problems of a block.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from drifting.fields import Coupling
from drifting.native import kernels as native
from drifting.problems import Block, ProblemGroup, joined, part


class Kept(Protocol):
    """What is kept of the drifts at all temperatures between two visits of the problems."""

    def add(self, rows: slice, k: int, coupling: Coupling) -> None:
        """Take the coupling of some problems at the k-th temperature."""
        ...

    def squares(self, rows: slice) -> Tensor:
        """|V_tau|^2 [b, G, T] of some problems, all of whose couplings have been taken."""
        ...

    def total(self, weight: Tensor) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for weights [B, 1|G, T]. What was kept is used up."""
        ...


def displacement(coupling: Coupling, block: Block, out: Tensor) -> Tensor:
    """V_i = sum_j c_ij (y_j - x_i) of one block, written to `out` [b, G, D], in the references' coordinates."""
    torch.bmm(coupling.coefficients, block.refs, out=out)
    if not coupling.balanced:
        out.addcmul_(coupling.coefficients.sum(-1, keepdim=True), block.gen, value=-1)
    return out


def superpose(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """sum_t w_t x_t, written to the first; T of x [b, G, L], contiguous, and w [b, 1|G, T]."""
    total = parts[0]
    if native.usable(total):
        native.superpose(parts, weight.contiguous(), total)
        return total
    total *= weight[..., :1]
    for t, part_t in enumerate(parts[1:], start=1):
        total.addcmul_(part_t, weight[..., t : t + 1])
    return total


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
        self._block: Block | None = None
        self._norms: list[Tensor] = []

    def add(self, rows: slice, k: int, coupling: Coupling) -> None:
        """Take the coupling of some problems at the k-th temperature."""
        if self._block is None or self._block.rows != rows:
            self._block = self.group.block(rows)  # for all temperatures
        drift = displacement(coupling, self._block, self.drifts[k][rows])
        self._norms.append(torch.linalg.vector_norm(drift, dim=-1))  # while it is in the cache

    def squares(self, rows: slice) -> Tensor:
        """|V_tau|^2 [b, G, T] of some problems, all of whose couplings have been taken."""
        norms, self._norms = self._norms, []
        return torch.stack(norms, dim=-1).square_()

    def total(self, weight: Tensor) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for weights [B, 1|G, T]. What was kept is used up."""
        drifts, self.drifts = self.drifts, []
        for rows in self.group.row_slices():
            superpose([part(drift, rows) for drift in drifts], part(weight, rows))
        return drifts[0]


class _Coefficients:
    """Keeps the coefficients of every temperature; how they move samples is the subclass's."""

    def __init__(self, group: ProblemGroup, num_temperatures: int) -> None:
        self.group = group
        shape = len(group), group.num_gen, group.num_refs
        self.coefficients = group.empty(num_temperatures, *shape).unbind()

    def add(self, rows: slice, k: int, coupling: Coupling) -> None:
        """Take the coupling of some problems at the k-th temperature."""
        part(self.coefficients[k], rows).copy_(coupling.coefficients)

    def total(self, weight: Tensor) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for weights [B, 1|G, T]. What was kept is used up."""
        drift = self.group.empty(len(self.group), self.group.num_gen, self.group.width)
        for rows in self.group.row_slices():
            total = superpose([part(kept, rows) for kept in self.coefficients], part(weight, rows))
            self._displace(total, rows, part(drift, rows))
        self.coefficients = ()
        return drift

    def _displace(self, coefficients: Tensor, rows: slice, out: Tensor) -> None:
        raise NotImplementedError


class KeptCoefficients(_Coefficients):
    """Needs balanced rows, or self pairs among the references.

    Args:
        group: the problems.
        num_temperatures: T.
        gram: inner products of all references, [B, M, M].
    """

    def __init__(self, group: ProblemGroup, num_temperatures: int, gram: Tensor) -> None:
        super().__init__(group, num_temperatures)
        self.gram = gram

    def add(self, rows: slice, k: int, coupling: Coupling) -> None:
        """Take the coupling of some problems at the k-th temperature."""
        super().add(rows, k, coupling)
        own = part(self.coefficients[k], rows)
        if not coupling.balanced:
            # y_i - x_i = 0: what the self pair gets moves nothing, and makes the row sum to zero.
            own[..., : self.group.num_gen].diagonal(dim1=-2, dim2=-1).sub_(own.sum(-1))

    def squares(self, rows: slice) -> Tensor:
        """|V_tau|^2 [b, G, T] of some problems, all of whose couplings have been taken."""
        gram, parts = part(self.gram, rows), [part(kept, rows) for kept in self.coefficients]
        return torch.stack([torch.bmm(own, gram).mul_(own).sum(-1) for own in parts], dim=-1).clamp_(min=0)

    def total(self, weight: Tensor) -> Tensor:
        """sum_tau w_tau V_tau, [B, G, D], for weights [B, 1|G, T]. What was kept is used up."""
        del self.gram
        return super().total(weight)

    def _displace(self, coefficients: Tensor, rows: slice, out: Tensor) -> None:
        torch.bmm(coefficients, self.group.block(rows).refs, out=out)


class KeptForSmall(_Coefficients):
    """Visits small problems as they are given."""

    def squares(self, rows: slice) -> Tensor:
        """|V_tau|^2 [b, G, T] of some problems, all of whose couplings have been taken."""
        kept = [part(each, rows) for each in self.coefficients]
        return joined(
            [
                native.squared_displacements_of_small([part(each, here) for each in kept], gen, blocks)
                for here, gen, blocks in self.group.pieces(rows)
            ]
        )

    def _displace(self, coefficients: Tensor, rows: slice, out: Tensor) -> None:
        for here, gen, blocks in self.group.pieces(rows):
            native.displacement_of_small(part(coefficients, here), gen, blocks, out=part(out, here))
