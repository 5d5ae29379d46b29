"""How a mean-shift field normalises affinities: log k [B, G, M] -> non-negative affinity [B, G, M].

Shapes: B problems, G generated, M references.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from drifting.native import kernels as native

Affinity = Callable[[Tensor], Tensor]
"""log-affinity [B, G, M] -> non-negative affinity [B, G, M]; the argument is left as it is."""


def two_sided_affinity(log_affinity: Tensor) -> Tensor:
    """sqrt(softmax over references * softmax over generated samples), Alg. 2 steps 3-4; [B, G, M] -> [B, G, M]."""
    if log_affinity.device.type == "cpu":
        # k / sqrt(sum_j k * sum_i k): one exponential serves both softmaxes, as long as no sum underflows. Asking costs
        # nothing here; elsewhere it would wait for the device.
        kernel = (log_affinity - log_affinity.amax((-2, -1), keepdim=True)).exp_()
        row, column = kernel.sum(-1, keepdim=True), kernel.sum(-2, keepdim=True)
        if min(row.min(), column.min()) > SMALLEST_SUM[kernel.dtype]:
            return kernel.mul_(row.rsqrt_()).mul_(column.rsqrt_())
    # Finite where a whole row or column has no kernel (a reference of weight 0): its affinity is 0, not NaN.
    smallest = 0.25 * torch.finfo(log_affinity.dtype).min
    row = log_affinity.logsumexp(dim=-1, keepdim=True).clamp_(min=smallest)
    column = log_affinity.logsumexp(dim=-2, keepdim=True).clamp_(min=smallest)
    return (log_affinity - 0.5 * (row + column)).exp_()


# Smallest sum of kernels, relative to the largest kernel of its problem, that leaves every digit of its terms: below it
# terms that count are rounded as denormal numbers.
SMALLEST_SUM = {torch.float32: native.SMALLEST_SUM, torch.float64: 1e-200}


def row_affinity(log_affinity: Tensor) -> Tensor:
    """Softmax over references alone (Table 11, "softmax over y only"); [B, G, M] -> [B, G, M]."""
    return log_affinity.softmax(dim=-1)


def unnormalized_affinity(log_affinity: Tensor) -> Tensor:
    """The bare kernel, Z = 1 (Table 11, "none"): underflows to zero where everything is far; [B, G, M] -> [B, G, M]."""
    return log_affinity.exp()


OWN_AFFINITIES = (two_sided_affinity, row_affinity, unnormalized_affinity)
"""Those that return a tensor of their own, which the field may overwrite."""
