"""Sharp field: mean-shift displacements over the sharp kernel's mass, a conservative field (arXiv 2604.06333).

    V(x) = tau^2 [ sum_pos w_j k_j (y_j - x) / Z#_p(x)  -  sum_neg w_j k_j (y_j - x) / Z#_q(x) ]     Z# = sum w_j k#_j
         = tau^2 grad_x [log Z#_p(x) - log Z#_q(x)]                                             grad_x k# = k (y - x)

A mean shift divides by sum k instead and is no gradient, unless k is Gaussian: there k# = tau^2 k, and V is the
difference of two mean shifts. The potential is one for fixed references: a generated batch that is its own reference
moves them too. tau^2 makes V a displacement, as in `KernelGradient`; in fact Sharp(k) is the kernel gradient of k#, and
k# of Matérn nu is a Matérn of nu + 1.
"""

from dataclasses import dataclass

from torch import Tensor

from drifting.fields.density import log_densities, log_ratio_gradient
from drifting.fields.field import Columns, Coupling
from drifting.kernels import SharpenableKernel, Temperature, laplacian


@dataclass(frozen=True)
class Sharp:
    """Conservative mean shift; weights are mass, extra negatives join the generated samples' density.

    Args:
        kernel: an object that knows its sharp kernel: `laplacian`, `gaussian`, `Matern`, `InverseMultiquadric` of a
            power above 1.
    """

    kernel: SharpenableKernel = laplacian

    def __post_init__(self) -> None:
        if isinstance(self.kernel, type) or not isinstance(self.kernel, SharpenableKernel):
            raise ValueError(
                f"Sharp: kernel must be an object that knows its sharp kernel (laplacian, gaussian, Matern(nu), "
                f"InverseMultiquadric(power > 1), or your own with __call__, pull and sharp), got {self.kernel!r}"
            )
        self.kernel.sharp()  # refuses an integral that diverges

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: Temperature, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        sharp = self.kernel.sharp()
        # w k / Z# = (w k# / Z#) (k / k#): the second factor is k#'s pull, the first a softmax, exact at any distance.
        densities = log_densities(sharp(distance, temperature), columns)
        coefficients = log_ratio_gradient(densities, sharp.pull(distance, temperature))
        contact = log_densities(self.kernel(distance, temperature), columns).contact() if with_contact else None
        return Coupling(coefficients, balanced=False, contact=contact)
