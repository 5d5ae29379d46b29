"""The paper's field (Alg. 2): attraction to positives minus repulsion from negatives, cross-weighted.

    a_ij  = k(x_i, y_j) / sqrt(sum_j k * sum_i k)          normalised over references and over generated samples
    c_pos =  a_pos * sum_j a_neg                           every row sums to zero, so V does not see translations
    c_neg = -a_neg * sum_j a_pos                           and swaps sign when positives and negatives swap (Eq. 11)

The authors' code floors a at 1e-3. The floor is what attracts samples that lie far from all data, and what freezes
low-dimensional problems at low temperature: keep it for features of some 64 dimensions and more, drop it (`floor=0`)
for pixels, actions and toys in few dimensions.
Shapes: B problems, G generated, M references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from drifting.fields.affinities import OWN_AFFINITIES, Affinity, two_sided_affinity
from drifting.fields.field import Columns, Contact, Coupling
from drifting.kernels import DifferentiableKernel, Kernel, Laplacian, laplacian
from drifting.native import kernels as native

# References up to which loops over one row cost more than the work in them; measured.
SHORT_ROW = 32


class WeightPlacement(Enum):
    """Where the weights of references act."""

    AFFINITY = "affinity"
    """On the normalised affinity: the authors' code. A reference of weight 0 still dilutes the others."""
    KERNEL = "kernel"
    """On the kernel, within the softmax over references: weight 2 is a duplicate, weight 0 an absent reference."""


@dataclass(frozen=True)
class MeanShift:
    """Cross-weighted mean-shift field (paper Alg. 2); the defaults are the authors' released code.

    Args:
        kernel: distance, temperature -> log-affinity.
        affinity: how affinities are normalised (Table 11).
        floor: smallest affinity of any pair, masked self pairs included; 0 gives Alg. 2 as printed.
        mask_self: a generated sample does not repel itself. Turn it off only for proofs: with the batch reused as its
            own negatives an unmasked field pulls every sample inwards.
        attraction: factor on the pull to positives (Table 1).
        repulsion: factor on the push off negatives (Table 1).
        separate_blocks: normalise affinities to positives and to negatives each on their own, the "Sinkhorn proxy" of
            arXiv 2605.05118, instead of in one matrix.
        weight_placement: where weights of references act, guidance included.
        bias_correction: take the O(1/n) bias of self-normalised means out of both centroids (ABC, arXiv 2604.27239).
    """

    kernel: Kernel = laplacian
    affinity: Affinity = two_sided_affinity
    floor: float = 1e-3
    mask_self: bool = True
    attraction: float = 1.0
    repulsion: float = 1.0
    separate_blocks: bool = False
    weight_placement: WeightPlacement = WeightPlacement.AFFINITY
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for name in ("floor", "attraction", "repulsion"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"MeanShift: {name} must be finite and >= 0, got {value}")

    @property
    def _weights_kernel(self) -> bool:
        return self.weight_placement is WeightPlacement.KERNEL

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: float | Tensor, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        if self._is_native(distance, columns):
            settings = self._native_settings(columns)
            if (found := native.mean_shift(distance, temperature=float(temperature), **settings)) is not None:
                return self._coupling_of_native(found, distance, with_contact)
        log_affinity = self._log_affinity(distance, columns, temperature)
        if self.separate_blocks:
            parts = log_affinity.split_with_sizes([columns.num_negative, columns.num_pos], dim=-1)
            affinity = torch.cat([self.affinity(part) for part in parts], dim=-1)
        else:
            affinity = self.affinity(log_affinity)
            if self.affinity not in OWN_AFFINITIES:  # a user's function may keep or expand what it returns
                affinity = affinity.clone(memory_format=torch.contiguous_format)
        if columns.is_weighted and self._weights_kernel and self.affinity is two_sided_affinity:
            # The softmax over generated samples cancels w, so only its root came through.
            affinity[..., columns.weighted] *= columns.weight[:, None, columns.weighted].sqrt()
        floor_share = None
        if self.floor > 0:
            affinity = affinity.clamp_(min=self.floor)
            floor_share = (affinity <= self.floor).to(distance.dtype).mean((1, 2)) if with_contact else None
        if columns.is_weighted and not self._weights_kernel:
            affinity[..., columns.weighted] *= columns.weight[:, None, columns.weighted]

        negative, positive = affinity.split_with_sizes([columns.num_negative, columns.num_pos], dim=-1)
        negative_sum, positive_sum = negative.sum(-1, keepdim=True), positive.sum(-1, keepdim=True)  # [B, G, 1]
        if self.bias_correction:
            remove_centroid_bias(negative, negative_sum)
            remove_centroid_bias(positive, positive_sum)
        positive *= self.attraction * negative_sum
        negative *= -self.repulsion * positive_sum
        contact = Contact(positive_sum.mean((1, 2)), negative_sum.mean((1, 2)), floor_share) if with_contact else None
        return Coupling(affinity, self.attraction == self.repulsion, contact)

    def at_temperatures(
        self, distance: Tensor, columns: Columns, temperatures: Sequence[float | Tensor], *, with_contact: bool
    ) -> list[Coupling] | None:
        """Couplings of problems with few references at T temperatures, by one C function; None for all others."""
        if distance.shape[-1] > SHORT_ROW or not self._is_native(distance, columns):
            return None
        values = [float(temperature) for temperature in temperatures]
        found = native.mean_shift_of_small(distance, temperatures=values, **self._native_settings(columns))
        if found is None:
            return None
        return [self._coupling_of_native(each, distance, with_contact) for each in found]

    def is_default_rule(self, columns: Columns) -> bool:
        """Whether kernel, affinity and weights are the released code's; floor, mask and factors may be any."""
        return (
            isinstance(self.kernel, Laplacian)  # a copy of a loss has one of its own
            and self.affinity is two_sided_affinity
            and not self.separate_blocks
            and not self.bias_correction
            and not (columns.is_weighted and self._weights_kernel)
        )

    def _is_native(self, distance: Tensor, columns: Columns) -> bool:
        """Whether there are C functions for it: the default rule on the CPU."""
        return self.is_default_rule(columns) and distance.is_contiguous() and native.usable(distance, columns.weight)

    def _native_settings(self, columns: Columns) -> dict[str, Any]:
        return {
            "weight": columns.weight if columns.is_weighted else None,
            "num_negative": columns.num_negative,
            "floor": self.floor,
            "attraction": self.attraction,
            "repulsion": self.repulsion,
            "mask_self": self.mask_self and columns.self_is_gen,
        }

    def _coupling_of_native(self, found: native.MeanShiftCoupling, distance: Tensor, with_contact: bool) -> Coupling:
        contact = None
        if with_contact:
            positive, negative = found.mass.mean(1).unbind(-1)
            pairs = distance.shape[1] * distance.shape[2]
            contact = Contact(positive, negative, found.on_floor / pairs if self.floor > 0 else None)
        return Coupling(found.coefficients, self.attraction == self.repulsion, contact)

    def _log_affinity(self, distance: Tensor, columns: Columns, temperature: float | Tensor) -> Tensor:
        """Log of the kernel, self pairs masked; a tensor of our own."""
        log_affinity = self.kernel(distance, temperature)
        if not isinstance(self.kernel, DifferentiableKernel):  # a user's function may keep or expand what it returns
            log_affinity = log_affinity.clone(memory_format=torch.contiguous_format)
        if columns.is_weighted and self._weights_kernel:
            log_affinity[..., columns.weighted] += columns.weight[:, None, columns.weighted].log()
        if self.mask_self and columns.self_is_gen:
            # Minus infinity is an affinity of exactly zero at every temperature; every row and column keeps other
            # entries, since a batch that is its own negatives has at least two samples.
            log_affinity[..., : columns.num_self].diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
        return log_affinity


def remove_centroid_bias(affinity: Tensor, total: Tensor) -> None:
    """Turn p = a / sum_j a into p + p^2 - p sum_j p^2, in place; affinity a [B, G, K], total [B, G, 1].

    The centroid c = sum_j p_j y_j of n draws is biased by -sum_j p_j^2 (y_j - c) + O(1/n^2): the bias of a quotient of
    means, with its expectation replaced by the sample. Adding the opposite leaves the sum of p at one.
    """
    share = affinity / total.clamp(min=torch.finfo(total.dtype).tiny)
    affinity *= 1 + share - share.square().sum(-1, keepdim=True)
