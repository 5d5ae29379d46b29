"""MMD field: the gradient of the difference of kernel densities, nothing normalised.

    V(x) = tau^2 grad_x [p_k(x) - q_k(x)] = sum_pos w_j k_j pull_j (y_j - x) / sum w  -  the same over negatives

Minus G tau^2 / 2 times the gradient of the squared maximum mean discrepancy MMD^2 in the generated samples (unbiased:
without the pairs of a sample with itself, which are constant). With extra negatives q is the mixture (1 - gamma) q +
gamma p_uncond, and the factor is G tau^2 / (2 (1 - gamma)). For `laplacian`, tau MMD^2 tends to the energy distance as
tau grows. Samples whose kernel reaches no reference do not move.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields.density import log_densities, resolved
from drifting.fields.field import Columns, Coupling
from drifting.fields.kernel_gradient import check_differentiable
from drifting.kernels import DifferentiableKernel, Temperature, laplacian


@dataclass(frozen=True)
class Mmd:
    """Gradient of the squared maximum mean discrepancy; weights are mass, extra negatives join the generated samples.

    Args:
        kernel: an object that knows its gradient: `laplacian`, `gaussian`, `Matern`, `InverseMultiquadric`.
    """

    kernel: DifferentiableKernel = laplacian

    def __post_init__(self) -> None:
        check_differentiable("Mmd", self.kernel)

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: Temperature, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        densities = log_densities(self.kernel(distance, temperature), columns)
        push = densities.negative.exp().mul_(-1 / densities.negative_mass)
        pull = densities.positive.exp().mul_(1 / densities.positive_mass)
        coefficients = torch.cat([push, pull], dim=-1).mul_(self.kernel.pull(resolved(distance), temperature))
        return Coupling(coefficients, balanced=False, contact=densities.contact() if with_contact else None)
