"""Kernels k(d) of a distance d = |x - y| and a width tau, with k(0) = 1.

    laplacian             log k = -d / tau                                the paper's, Eq. 12 (un-squared distance)
    gaussian              log k = -d^2 / (2 tau^2)
    Matern(nu)            log k = log theta_n(z) / theta_n(0) - z         z = sqrt(2 nu) d / tau, n = nu - 1/2
    InverseMultiquadric   log k = -power log(1 + d^2 / tau^2)

Fields normalise log k, so nothing underflows. `MeanShift` needs no more than that, and takes any function of (distance,
temperature) in a kernel's place. Fields that follow a gradient need two things more, which the objects here have:

    pull    -tau^2 k'(d) / (d k(d))       the coefficient of y - x in tau^2 grad_x log k; without a unit
    sharp   k#(d) = int_d^inf k(r) r dr   the kernel with grad_x k# = k (y - x) (arXiv 2604.06333)

Functions here are elementwise: distances of any shape give that shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Temperature = float | Tensor
"""tau > 0, a number or [], in the unit of the distances."""

Kernel = Callable[[Tensor, Temperature], Tensor]
"""(distance [B, G, M], temperature) -> log-affinity [B, G, M]."""

SMALLEST_RATIO = 1e-12  # of d / tau where it divides: a pair at distance zero has no direction, and pulls nowhere


@runtime_checkable
class DifferentiableKernel(Protocol):
    """A kernel that knows its gradient; what `KernelGradient` and `Mmd` need."""

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """log k."""
        ...

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """-tau^2 k'(d) / (d k(d)), so that tau^2 grad_x log k(|x - y|) = pull (y - x)."""
        ...


@runtime_checkable
class SharpenableKernel(DifferentiableKernel, Protocol):
    """A kernel that knows its sharp kernel; what `Sharp` needs."""

    def sharp(self) -> DifferentiableKernel:
        """k#, in the same temperature as k. ValueError where the integral diverges."""
        ...


@dataclass(frozen=True)
class SharpKernel:
    """k#(d; tau) = factor tau^2 kernel(d; stretch tau): of every kernel here, k# is a wider kernel of its family."""

    kernel: DifferentiableKernel
    stretch: float = 1.0
    factor: float = 1.0

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """log k#."""
        scale = self.factor * temperature**2
        log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        return self.kernel(distance, self.stretch * temperature) + log_scale

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """tau^2 k / k#, in the unit of k's tau."""
        return self.kernel.pull(distance, self.stretch * temperature) / self.stretch**2


@dataclass(frozen=True, repr=False)
class Laplacian:
    """k = exp(-d / tau), paper Eq. 12; the object is called `laplacian`."""

    __name__ = "laplacian"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """-d / tau."""
        return distance * (-1.0 / temperature)

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """tau / d: every sample is pulled equally hard, whatever its distance; a coincident one has no direction."""
        return (distance * (1.0 / temperature)).clamp(min=SMALLEST_RATIO).reciprocal()

    def sharp(self) -> SharpKernel:
        """k# = tau (d + tau) exp(-d / tau)."""
        return Matern(0.5).sharp()


@dataclass(frozen=True, repr=False)
class Gaussian:
    """k = exp(-d^2 / (2 tau^2)); the object is called `gaussian`."""

    __name__ = "gaussian"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """-d^2 / (2 tau^2)."""
        return distance.square() * (-0.5 / temperature**2)

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """1: the kernel's gradient is the mean-shift displacement."""
        return distance.new_ones(()).expand_as(distance)

    def sharp(self) -> SharpKernel:
        """k# = tau^2 k: the Gaussian is its own sharp kernel, and the only one."""
        return SharpKernel(self)


laplacian = Laplacian()
gaussian = Gaussian()


@dataclass(frozen=True)
class Matern:
    """Matérn kernel of half-integer smoothness, z = sqrt(2 nu) d / tau, n = nu - 1/2.

        nu = 1/2   exp(-z)                        `laplacian`
        nu = 3/2   (1 + z) exp(-z)
        nu = 5/2   (1 + z + z^2 / 3) exp(-z)      and so on; nu -> inf is `gaussian`

    Written by the reverse Bessel polynomials theta_n = (2n - 1) theta_{n-1} + z^2 theta_{n-2}, theta_0 = 1,
    theta_1 = 1 + z: k = theta_n(z) exp(-z) / theta_n(0), and d/dz theta_n exp(-z) = -z theta_{n-1} exp(-z).

    Raises:
        ValueError: nu is not 0.5, 1.5, 2.5, ...: other orders have no closed form.
    """

    nu: float

    def __post_init__(self) -> None:
        if not (0 < self.nu < float("inf") and (2 * self.nu) % 2 == 1):
            raise ValueError(f"Matern: nu must be 0.5, 1.5, 2.5, ... (a closed form), got {self.nu}")

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """log theta_n(z) / theta_n(0) - z."""
        z = self._scaled(distance, temperature)
        log_kernel = -z
        for growth in reverse_bessel_growth(z, self._order):
            log_kernel += torch.log1p(growth)
        return log_kernel

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """2 nu theta_{n-1}(z) / theta_n(z): 3 / (1 + z) for nu = 3/2, for example."""
        if self._order == 0:
            return laplacian.pull(distance, temperature)
        last = reverse_bessel_growth(self._scaled(distance, temperature), self._order)[-1]
        return (2 * self.nu / (2 * self._order - 1)) / (1 + last)

    def sharp(self) -> SharpKernel:
        """k# = tau^2 theta_{n+1}(z) exp(-z) / theta_{n+1}(0): Matérn of nu + 1 in the same z."""
        return SharpKernel(Matern(self.nu + 1), stretch=math.sqrt((self.nu + 1) / self.nu))

    @property
    def _order(self) -> int:
        return int(self.nu - 0.5)

    def _scaled(self, distance: Tensor, temperature: Temperature) -> Tensor:
        return distance * (math.sqrt(2 * self.nu) / temperature)


def reverse_bessel_growth(z: Tensor, order: int) -> list[Tensor]:
    """r_m - 1 of the ratios r_m = theta_m(z) theta_{m-1}(0) / (theta_m(0) theta_{m-1}(z)), m = 1 .. order.

    theta_m / theta_{m-1} = (2m - 1) + z^2 theta_{m-2} / theta_{m-1}, and at zero it is 2m - 1. Ratios do not overflow
    where the polynomials would.
    """
    growth = [z][:order]
    for m in range(2, order + 1):
        previous_ratio = (2 * m - 3) * (1 + growth[-1])  # theta_{m-1} / theta_{m-2}
        growth.append(z * (z / previous_ratio) / (2 * m - 1))
    return growth


@dataclass(frozen=True)
class InverseMultiquadric:
    """k = (1 + d^2 / tau^2)^-power: falls like a power of the distance, so that far samples still pull.

    Raises:
        ValueError: power is not finite and positive.
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ValueError(f"InverseMultiquadric: power must be finite and > 0, got {self.power}")

    def __call__(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """-power log(1 + d^2 / tau^2)."""
        return torch.log1p((distance * (1.0 / temperature)).square()) * -self.power

    def pull(self, distance: Tensor, temperature: Temperature) -> Tensor:
        """2 power / (1 + d^2 / tau^2)."""
        return 2 * self.power / (1 + (distance * (1.0 / temperature)).square())

    def sharp(self) -> SharpKernel:
        """k# = tau^2 / (2 (power - 1)) (1 + d^2 / tau^2)^(1 - power), for power > 1."""
        if self.power <= 1:
            raise ValueError(
                f"InverseMultiquadric: the sharp kernel int k(r) r dr exists for power > 1 only, got {self.power}; "
                "choose a larger power or another kernel"
            )
        return SharpKernel(InverseMultiquadric(self.power - 1), factor=0.5 / (self.power - 1))
