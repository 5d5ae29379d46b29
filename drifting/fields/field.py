"""What a drifting field is: the rule that turns distances into signed coefficients c_ij.

    V_i = sum_j c_ij (y_j - x_i)        y_j in {generated, extra negatives, positives}; c > 0 attracts, c < 0 repels

The engine does everything else. A field sees distances only and is never differentiated.
Shapes: B problems, G generated, M = num_self + num_neg + num_pos references.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Columns:
    """What each of the M reference columns is, in this order: [self | extra negatives | positives].

    `self_is_gen` tells that the self block is the generated batch itself, so that entry (i, i) pairs a sample with
    itself; it is False for an independent second batch. `weight` [B, M] multiplies affinities after `MeanShift` has
    normalised them: weight 2 is not the same as a duplicated column, nor weight 0 as an absent one, because the
    normalising sums do not see weights. `Sinkhorn` takes it as mass, and there both are the same.
    """

    num_self: int
    num_neg: int
    num_pos: int
    self_is_gen: bool
    weight: Tensor

    @property
    def num_negative(self) -> int:
        """Columns that repel: generated and extra negatives; positives start at this index."""
        return self.num_self + self.num_neg


@dataclass(frozen=True, slots=True)
class Contact:
    """What tells whether the kernel sees anything at one temperature."""

    positive_mass: Tensor  # []  mean over generated samples of their summed affinity to positives
    negative_mass: Tensor  # []  the same to generated samples and extra negatives
    floor_share: Tensor  # []  share of affinities that stand on the field's floor; 0 for a field without one


@dataclass(frozen=True, slots=True)
class Coupling:
    """Coefficients of one field at one temperature."""

    coefficients: Tensor  # [B, G, M]  signed
    contact: Contact


class Field(Protocol):
    """Distances [B, G, M] -> `Coupling`; runs without gradient, in float32 or float64."""

    def __call__(self, distance: Tensor, columns: Columns, *, temperature: float) -> Coupling:
        """Coefficients at `temperature`, in the unit of `distance`."""
        ...


def self_pairs(num_gen: int, columns: Columns, device: torch.device) -> Tensor:
    """Mask [G, M] of the entries that pair a generated sample with itself; all False for an independent self block."""
    mask = torch.zeros(num_gen, columns.weight.shape[-1], dtype=torch.bool, device=device)
    if columns.self_is_gen:
        mask.fill_diagonal_(True)
    return mask
