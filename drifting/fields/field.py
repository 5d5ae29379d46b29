"""What a drifting field is: the rule that turns distances into signed coefficients c_ij.

    V_i = sum_j c_ij (y_j - x_i)        y_j in {generated, extra negatives, positives}; c > 0 attracts, c < 0 repels

The engine does everything else. A field sees distances only and is never differentiated.
Shapes: B problems, G generated, M = num_self + num_neg + num_pos references.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Columns:
    """What each of the M reference columns is, in this order: [self | extra negatives | positives].

    `self_is_gen` tells that the self block is the generated batch itself, so that entry (i, i) pairs a sample with
    itself; it is False for an independent second batch. `weight` [B, M] multiplies affinities after `MeanShift` has
    normalised them: weight 2 is not the same as a duplicated column, nor weight 0 as an absent one, because the
    normalising sums do not see weights. All other fields take it as mass, and there both are the same. Weights outside
    the columns `weighted`, a slice with start and stop, are all one.
    """

    num_self: int
    num_neg: int
    num_pos: int
    self_is_gen: bool
    weight: Tensor
    weighted: slice

    @property
    def num_negative(self) -> int:
        """Columns that repel: generated and extra negatives; positives start at this index."""
        return self.num_self + self.num_neg

    @property
    def is_weighted(self) -> bool:
        """Whether any weight may differ from one."""
        return bool(self.weighted.start != self.weighted.stop)


@dataclass(frozen=True, slots=True)
class Contact:
    """What tells whether the kernel sees anything at one temperature, of each problem."""

    positive_mass: Tensor  # [B]  mean over generated samples of their summed affinity to positives
    negative_mass: Tensor  # [B]  the same to generated samples and extra negatives
    floor_share: Tensor | None = None  # [B]  share of affinities that stand on the field's floor; None without one
    plan_error: Tensor | None = None  # [B]  largest relative error of a column's mass; None without a transport plan
    sweeps: Tensor | None = None  # [B]  Sinkhorn sweeps that were run; None without a transport plan


@dataclass(frozen=True, slots=True)
class Coupling:
    """Coefficients of one field at one temperature.

    `balanced` promises that every row of coefficients sums to zero up to rounding. The sum over references then needs
    no term in x itself, V_i = sum_j c_ij y_j, and the engine leaves it out.
    """

    coefficients: Tensor  # [B, G, M]  signed
    balanced: bool
    contact: Contact | None  # None unless asked for


class Field(Protocol):
    """Distances [B, G, M] -> `Coupling`; runs without gradient, in float32 or float64.

    The engine calls a field on a few problems at a time: a problem must not depend on its neighbours in the batch.
    """

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: float | Tensor, with_contact: bool = True
    ) -> Coupling:
        """Coefficients at `temperature` (a number or [], in the unit of `distance`); `distance` is left as it is."""
        ...


@runtime_checkable
class FieldAtOnce(Field, Protocol):
    """A field that may know a faster way to several temperatures than one after another."""

    def at_temperatures(
        self, distance: Tensor, columns: Columns, temperatures: Sequence[float | Tensor], *, with_contact: bool
    ) -> list[Coupling] | None:
        """Couplings at T temperatures; None where one after another is faster."""
        ...


def couplings(
    field: Field, distance: Tensor, columns: Columns, temperatures: Sequence[float | Tensor], *, with_contact: bool
) -> Iterator[Coupling]:
    """Couplings at T temperatures, one alive at a time unless the field finds them together."""
    if isinstance(field, FieldAtOnce):
        together = field.at_temperatures(distance, columns, temperatures, with_contact=with_contact)
        if together is not None:
            yield from together
            return
    for temperature in temperatures:
        yield field(distance, columns, temperature=temperature, with_contact=with_contact)


def self_pairs(num_gen: int, columns: Columns, device: torch.device) -> Tensor:
    """Mask [G, M] of the entries that pair a generated sample with itself; all False for an independent self block."""
    mask = torch.zeros(num_gen, columns.weight.shape[-1], dtype=torch.bool, device=device)
    if columns.self_is_gen:
        mask.fill_diagonal_(True)
    return mask
