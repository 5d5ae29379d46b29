"""The paper's field (Alg. 2): attraction to positives minus repulsion from negatives, cross-weighted.

    a_ij  = k(x_i, y_j) / sqrt(sum_j k * sum_i k)          normalised over references and over generated samples
    c_pos =  a_pos * sum_j a_neg                           every row sums to zero, so V does not see translations
    c_neg = -a_neg * sum_j a_pos                           and swaps sign when positives and negatives swap (Eq. 11)

The authors' code floors a at 1e-3. The floor is what attracts samples that lie far from all data, and what freezes
low-dimensional problems at low temperature: keep it for features of some 64 dimensions and more, drop it (`floor=0`)
for pixels, actions and toys in few dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields.field import Columns, Contact, Coupling, self_pairs
from drifting.kernels import Kernel, laplacian

Affinity = Callable[[Tensor], Tensor]
"""log-affinity [B, G, M] -> non-negative affinity [B, G, M]."""


def two_sided_affinity(log_affinity: Tensor) -> Tensor:
    """sqrt(softmax over references * softmax over generated samples), Alg. 2 steps 3-4; [B, G, M] -> [B, G, M]."""
    row = log_affinity.logsumexp(dim=-1, keepdim=True)
    column = log_affinity.logsumexp(dim=-2, keepdim=True)
    return (log_affinity - 0.5 * (row + column)).exp()


def row_affinity(log_affinity: Tensor) -> Tensor:
    """Softmax over references alone (Table 11, "softmax over y only"); [B, G, M] -> [B, G, M]."""
    return log_affinity.softmax(dim=-1)


def unnormalized_affinity(log_affinity: Tensor) -> Tensor:
    """The bare kernel, Z = 1 (Table 11, "none"): underflows to zero where everything is far; [B, G, M] -> [B, G, M]."""
    return log_affinity.exp()


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
    """

    kernel: Kernel = laplacian
    affinity: Affinity = two_sided_affinity
    floor: float = 1e-3
    mask_self: bool = True
    attraction: float = 1.0
    repulsion: float = 1.0

    def __post_init__(self) -> None:
        for name in ("floor", "attraction", "repulsion"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"MeanShift: {name} must be finite and >= 0, got {value}")

    def __call__(self, distance: Tensor, columns: Columns, *, temperature: float) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        log_affinity = self.kernel(distance, temperature)
        if self.mask_self and columns.self_is_gen:
            # Minus infinity is an affinity of exactly zero at every temperature; every row and column keeps other
            # entries, since a batch that is its own negatives has at least two samples.
            log_affinity = log_affinity.masked_fill(
                self_pairs(distance.shape[1], columns, distance.device), float("-inf")
            )
        affinity = self.affinity(log_affinity).clamp(min=self.floor)
        floor_share = (affinity <= self.floor).to(distance.dtype).mean() if self.floor else distance.new_zeros(())

        weighted = affinity * columns.weight[:, None, :]
        negative, positive = torch.split(weighted, [columns.num_negative, columns.num_pos], dim=-1)
        negative_sum = negative.sum(-1, keepdim=True)  # [B, G, 1]
        positive_sum = positive.sum(-1, keepdim=True)  # [B, G, 1]
        pull = positive * (self.attraction * negative_sum)
        push = negative * (-self.repulsion * positive_sum)
        contact = Contact(positive_sum.mean(), negative_sum.mean(), floor_share)
        return Coupling(torch.cat([push, pull], dim=-1), contact)
