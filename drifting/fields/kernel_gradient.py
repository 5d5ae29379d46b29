"""Kernel-gradient field: the gradient of the log ratio of kernel densities (arXiv 2605.10727).

    V(x) = tau^2 grad_x [log p_k(x) - log q_k(x)]
         = sum_pos s_j pull_j (y_j - x) - sum_neg s_j pull_j (y_j - x)       s: softmax of log w_j k(x, y_j) per side

With p_k and q_k held fixed V is conservative, and zero wherever the two densities are proportional. The factor tau^2
makes V a displacement: for `gaussian`, where pull = 1, it is the difference of two mean shifts (arXiv 2603.07514).
The flows of all f-divergences differ by a factor per sample alone; see drifting.fields.divergence.
"""

from dataclasses import dataclass

from torch import Tensor

from drifting.fields.density import log_densities, log_ratio_gradient, resolved
from drifting.fields.divergence import DensityRatioWeight, kl_gen_data
from drifting.fields.field import Columns, Coupling
from drifting.kernels import DifferentiableKernel, Temperature, laplacian


@dataclass(frozen=True)
class KernelGradient:
    """Gradient of the log density ratio; weights are mass, extra negatives join the generated samples' density.

    Unlike `MeanShift` either side is normalised by itself, so far samples are pulled as hard as near ones, and nothing
    is cross-weighted: V is anti-symmetric with the default divergence only.

    Args:
        kernel: an object that knows its gradient: `laplacian`, `gaussian`, `Matern`, `InverseMultiquadric`.
        divergence: D(gen, data) that samples descend, as a weight of log p_k / q_k.
        largest_weight: the weight's bound: where a sample sees one side only the ratio has no meaning, and no bound.
    """

    kernel: DifferentiableKernel = laplacian
    divergence: DensityRatioWeight = kl_gen_data
    largest_weight: float = 100.0

    def __post_init__(self) -> None:
        check_differentiable("KernelGradient", self.kernel)
        if not 0 < self.largest_weight < float("inf"):
            raise ValueError(f"KernelGradient: largest_weight must be finite and > 0, got {self.largest_weight}")

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: Temperature, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        densities = log_densities(self.kernel(distance, temperature), columns)
        coefficients = log_ratio_gradient(densities, self.kernel.pull(resolved(distance), temperature))
        if self.divergence is not kl_gen_data:  # whose weight is 1
            coefficients *= self.divergence(densities.log_ratio()).clamp(max=self.largest_weight)
        return Coupling(coefficients, balanced=False, contact=densities.contact() if with_contact else None)


def check_differentiable(field: str, kernel: object) -> None:
    """Refuse what has no gradient, a plain function above all."""
    if isinstance(kernel, type) or not isinstance(kernel, DifferentiableKernel):
        raise ValueError(
            f"{field}: kernel must be an object that knows its gradient (laplacian, gaussian, Matern(nu), "
            f"InverseMultiquadric(power), or your own with __call__ and pull), got {kernel!r}; "
            "MeanShift takes any function"
        )
