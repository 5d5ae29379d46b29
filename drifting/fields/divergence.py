"""f-divergences as weights of the log-ratio gradient (arXiv 2603.10592; derived here anew).

The Wasserstein gradient flow of D(q) = int p f(u), u = q / p, moves samples of q with the velocity

    -grad f'(u) = -f''(u) grad u = u f''(u) grad log(p / q)

so every f-divergence pulls in the direction of `KernelGradient` and differs in the weight u f''(u) alone. Names are in
the order of the arguments, gen for q and data for p: papers disagree on which Kullback-Leibler direction is the forward
one.
Shapes: any; log_ratio is log p / q.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DensityRatioWeight = Callable[[Tensor], Tensor]
"""log p / q [B, G, 1] -> weight u f''(u) [B, G, 1], non-negative."""


def kl_gen_data(log_ratio: Tensor) -> Tensor:
    """1, of KL(q | p), f = u log u: flees where there is no data, forgives missing modes."""
    return torch.ones_like(log_ratio)


def kl_data_gen(log_ratio: Tensor) -> Tensor:
    """p / q, of KL(p | q), f = -log u: samples next to uncovered data move most, samples far from data hardly."""
    return log_ratio.exp()


def chi_squared_gen_data(log_ratio: Tensor) -> Tensor:
    """2 q / p, of int (q - p)^2 / p, f = (u - 1)^2: samples far from data move most."""
    return 2 * (-log_ratio).exp()


def chi_squared_data_gen(log_ratio: Tensor) -> Tensor:
    """2 (p / q)^2, of int (p - q)^2 / q, f = (1 - u)^2 / u."""
    return 2 * (2 * log_ratio).exp()
