"""Mean and covariance of features that arrive in batches, on several ranks, in float64.

    merged mean        m = (n_a m_a + n_b m_b) / n
    merged scatter     S = S_a + S_b + (n_a n_b / n) (m_b - m_a)(m_b - m_a)^T        (Chan, Golub, LeVeque 1979)
    covariance         S / (n - 1)

No sum of squares is kept, so that a mean far from zero costs no digits.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from domains.imagenet.metrics.frechet import Gaussian


@dataclass(slots=True)
class Moments:
    """count n, mean [d] and scatter [d, d] = sum of (x - mean)(x - mean)^T, float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of one batch [n, d], n >= 1."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must be [n, d] with n >= 1, got shape {tuple(features.shape)}")
        x = features.double()
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def merged(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"other must have {len(self.mean)} features, got {len(other.mean)}")
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter.addr_(apart, apart, alpha=self.count * other.count / count)
        return Moments(count, mean, scatter)

    def over_ranks(self, group: dist.ProcessGroup | None = None) -> "Moments":
        """Of the sets of all ranks together: a collective call; itself where there is one process."""
        if not dist.is_initialized():
            return self
        total = torch.tensor(float(self.count), dtype=torch.float64)
        dist.all_reduce(total, group=group)
        mean = self.mean * (self.count / total)
        dist.all_reduce(mean, group=group)
        apart = self.mean - mean
        scatter = self.scatter + self.count * torch.outer(apart, apart)
        dist.all_reduce(scatter, group=group)
        return Moments(round(float(total)), mean, scatter)

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, that of n - 1.

        Raises:
            ValueError: of fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1))
