"""Kernel densities of the two sides, seen from every generated sample, and the gradient of their log ratio.

    p_k(x) = sum_pos w_j k(x, y_j) / sum_pos w_j        q_k(x) = sum_neg w_j k(x, y_j) / sum_neg w_j

Negatives are the generated samples and the extra negatives together: with weights of `guidance_weight` q_k is the
density of (1 - gamma) q + gamma p_uncond (paper Sec. 3.5). A sample is not in the density that repels it: its own
kernel, which has no gradient, would be all it sees at low temperature, and nothing would repel.
Everything is in the log domain. Shapes: B problems, G generated, M references.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields.field import Columns, Contact
from drifting.fields.mass import side_masses


@dataclass(frozen=True, slots=True)
class LogDensities:
    """Terms and sums of both densities; the ratio of the masses is what makes the two comparable."""

    negative: Tensor  # [B, G, num_negative]  log w_j k_ij; minus infinity for a sample and itself
    positive: Tensor  # [B, G, num_pos]
    negative_mass: Tensor  # [B, G or 1, 1]
    positive_mass: Tensor  # [B, 1, 1]

    def log_negative(self) -> Tensor:
        """log q_k, [B, G, 1]."""
        return self.negative.logsumexp(-1, keepdim=True) - self.negative_mass.log()

    def log_positive(self) -> Tensor:
        """log p_k, [B, G, 1]."""
        return self.positive.logsumexp(-1, keepdim=True) - self.positive_mass.log()

    def log_ratio(self) -> Tensor:
        """log p_k / q_k, [B, G, 1]."""
        return self.log_positive() - self.log_negative()

    def contact(self) -> Contact:
        """Mean density of each side, in units of k(0): 0 means the kernel is blind, 1 that it sees no distance."""
        return Contact(
            positive_mass=self.log_positive().exp().mean((1, 2)), negative_mass=self.log_negative().exp().mean((1, 2))
        )


def log_densities(log_kernel: Tensor, columns: Columns) -> LogDensities:
    """Split log k [B, G, M] into its sides, weighted by mass.

    Raises:
        ValueError: a side without mass.
    """
    negative_mass, positive_mass = side_masses(columns)
    # Beyond the float range everything is equally far: minus infinity in a whole row would be no distribution.
    terms = log_kernel.clamp(min=0.5 * torch.finfo(log_kernel.dtype).min)
    if columns.is_weighted:
        terms[..., columns.weighted] += columns.weight[:, None, columns.weighted].log()
    if columns.self_is_gen:
        terms[..., : columns.num_self].diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    negative, positive = torch.split(terms, [columns.num_negative, columns.num_pos], dim=-1)
    return LogDensities(negative, positive, negative_mass, positive_mass)


def log_ratio_gradient(densities: LogDensities, pull: Tensor) -> Tensor:
    """Coefficients of tau^2 grad_x [log p_k(x) - log q_k(x)], by grad log k = pull (y - x) / tau^2.

    Softmax of either side times pull: each sample is pulled by the references that it sees, each in its share.
    [B, G, M] -> [B, G, M].
    """
    return torch.cat([-densities.negative.softmax(-1), densities.positive.softmax(-1)], dim=-1).mul_(pull)


def resolved(distance: Tensor) -> Tensor:
    """Distances [B, G, M] no smaller than their own rounding, for a kernel whose pull has a pole: d = 0 of `laplacian`.

    The engine finds distances by dot products, d^2 to some eps of the largest in the problem. Below the root of that a
    distance is noise, and so would be a pull tau / d; bounded, the samples of a collapsed batch repel each other weakly
    and in the right direction.
    """
    rounding = 2 * torch.finfo(distance.dtype).eps ** 0.5
    return distance.maximum(rounding * distance.amax((-2, -1), keepdim=True))
