"""Kernels k(x, y) of a distance, as log-affinities: the fields normalise them in the log domain, so nothing underflows.

laplacian   log k = -d / tau           Eq. 12, the paper's kernel (un-squared distance)
gaussian    log k = -d^2 / (2 tau^2)
"""

from collections.abc import Callable

from torch import Tensor

Kernel = Callable[[Tensor, float], Tensor]
"""(distance [B, G, M], temperature) -> log-affinity [B, G, M]."""


def laplacian(distance: Tensor, temperature: float) -> Tensor:
    """Log of k(x, y) = exp(-|x - y| / tau), paper Eq. 12; any shape -> same shape."""
    return distance * (-1.0 / temperature)


def gaussian(distance: Tensor, temperature: float) -> Tensor:
    """Log of k(x, y) = exp(-|x - y|^2 / (2 tau^2)); any shape -> same shape."""
    return distance.square() * (-0.5 / temperature**2)
