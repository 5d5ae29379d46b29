"""Frechet distance of two Gaussians: FID (Heusel et al. 2017), and sFID (Nash et al. 2021) in spatial features.

    d = |m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2)
    tr (C_x C_y)^(1/2) = sum of the square roots of the eigenvalues of R C_x R,    R = C_y^(1/2)

R C_x R has the eigenvalues of C_x C_y and is symmetric: no complex roots, and no epsilon where a covariance is
singular.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """mean [d] and symmetric covariance [d, d], float64."""

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        width = self.mean.numel()
        if self.mean.ndim != 1 or self.covariance.shape != (width, width):
            shapes = f"mean {tuple(self.mean.shape)} and covariance {tuple(self.covariance.shape)}"
            raise ValueError(f"mean and covariance must be [d] and [d, d], got {shapes}")
        for name, value in (("mean", self.mean), ("covariance", self.covariance)):
            if value.dtype != torch.float64:
                raise ValueError(f"{name} must be float64, got {value.dtype}")
            if not value.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity")

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance, [d, d]; computed once for all sets that are compared with it."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Distance of x to y, squared as is usual; `y.root` is kept, so let y be the reference.

    Raises:
        ValueError: of different widths.
    """
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"x must have {len(y.mean)} features as y has, got {len(x.mean)}")
    product = y.root @ x.covariance @ y.root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (x.mean - y.mean).square().sum()
    return float(apart + x.covariance.trace() + y.covariance.trace() - 2 * shared)
