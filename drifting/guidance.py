"""Training-time classifier-free guidance (paper Sec. 3.5, A.7).

Real samples of random classes join the negatives with weight w. Repulsion from (1 - gamma) q + gamma p_uncond makes the
equilibrium q = alpha p - (alpha - 1) p_uncond with alpha = 1 / (1 - gamma), so one forward pass is already guided.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def guidance_weight(alpha: Tensor, num_gen: int, num_uncond: int) -> Tensor:
    """Weight w of each unconditional negative: w = (alpha - 1)(G - 1) / N (A.7); any shape -> same shape.

    Args:
        alpha: guidance scales, >= 1; 1 gives weight 0.
        num_gen: G, generated samples per problem.
        num_uncond: N, unconditional negatives per problem.

    Raises:
        ValueError: fewer than two generated samples or no unconditional negative.
    """
    if num_gen < 2:
        raise ValueError(f"num_gen must be >= 2 (a sample repels the other G - 1), got {num_gen}")
    if num_uncond < 1:
        raise ValueError(f"num_uncond must be >= 1, got {num_uncond}; without negatives there is nothing to weight")
    return (alpha - 1) * (num_gen - 1) / num_uncond


@dataclass(frozen=True)
class GuidanceRange:
    """Distribution of the guidance scale: p(alpha) ~ alpha^-power on [low, high], and 1 with `off_probability` (A.7).

    Raises:
        ValueError: unless 1 <= low <= high, both finite, and 0 <= off_probability <= 1.
    """

    low: float = 1.0
    high: float = 4.0
    power: float = 3.0
    off_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high < float("inf"):
            raise ValueError(f"GuidanceRange needs 1 <= low <= high < inf, got low={self.low}, high={self.high}")
        if not abs(self.power) < float("inf"):
            raise ValueError(f"GuidanceRange: power must be finite, got {self.power}")
        if not 0 <= self.off_probability <= 1:
            raise ValueError(f"GuidanceRange: off_probability must lie in [0, 1], got {self.off_probability}")

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of the cumulative distribution, u in [0, 1] -> alpha; log-uniform at power 1. Any shape."""
        exponent = 1.0 - self.power
        log_ratio = math.log(self.high / self.low)
        # log alpha - log low, in expm1 and log1p: the plain powers lose every float32 digit near power 1.
        growth = u * log_ratio if exponent == 0 else torch.log1p(u * math.expm1(exponent * log_ratio)) / exponent
        # Rounding can pass the ends.
        return (growth.exp() * self.low).clamp(self.low, self.high)

    def sample(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw [n] guidance scales, float32."""
        u, off = torch.rand(2, n, generator=generator, device=device)
        alpha = self.quantile(u)
        return torch.where(off < self.off_probability, torch.ones_like(alpha), alpha)
