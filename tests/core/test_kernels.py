"""Kernels: log k, its gradient and its sharp kernel, each against autograd or quadrature of the plain formula."""

import math
import pickle

import numpy as np
import pytest
import torch
from field_formulas import KERNELS
from scipy.integrate import quad

from drifting import MeanShift, gaussian, laplacian
from drifting.kernels import (
    DifferentiableKernel,
    InverseMultiquadric,
    Matern,
    SharpenableKernel,
    SharpKernel,
    reverse_bessel_growth,
)

TAU = 0.7
every_kernel = pytest.mark.parametrize("kernel, plain", KERNELS.values(), ids=KERNELS.keys())
SHARP = {name: pair for name, pair in KERNELS.items() if name != "imq_1_2"}
every_sharp_kernel = pytest.mark.parametrize("kernel, plain", SHARP.values(), ids=SHARP.keys())


def distances() -> torch.Tensor:
    return torch.logspace(-4, 1.3, 40, dtype=torch.float64)


@every_kernel
def test_log_affinity_is_the_logarithm_of_the_plain_formula(kernel, plain):
    torch.testing.assert_close(kernel(distances(), TAU).exp(), plain(distances() / TAU), rtol=1e-12, atol=0)
    assert kernel(torch.zeros(1), TAU).item() == 0.0


@every_kernel
def test_pull_is_the_coefficient_of_the_displacement_in_the_gradient(kernel, plain):
    """tau^2 d/dd log k = -pull d, so that tau^2 grad_x log k = pull (y - x)."""
    d = distances().requires_grad_()
    (slope,) = torch.autograd.grad(plain(d / TAU).log().sum(), d)
    torch.testing.assert_close(kernel.pull(d.detach(), TAU), -(TAU**2) * slope / d.detach(), rtol=1e-9, atol=0)


@every_sharp_kernel
def test_sharp_kernel_is_the_integral(kernel, plain):
    sharp = kernel.sharp()
    for d in (0.0, 0.3, 1.0, 2.5):
        integral, _ = quad(lambda r: plain(torch.tensor(r / TAU, dtype=torch.float64)).item() * r, d, np.inf)
        value = sharp(torch.tensor(d, dtype=torch.float64), TAU).exp().item()
        assert value == pytest.approx(integral, rel=1e-7)


@every_sharp_kernel
def test_gradient_of_the_sharp_kernel_is_kernel_times_displacement(kernel, plain):
    x = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    for y in torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        distance = (x - y).norm()
        (slope,) = torch.autograd.grad(kernel.sharp()(distance, TAU).exp(), x)
        torch.testing.assert_close(slope, (plain(distance / TAU) * (y - x)).detach(), rtol=1e-10, atol=0)
        ratio = TAU**2 * plain(distance / TAU) / kernel.sharp()(distance, TAU).exp()
        torch.testing.assert_close(kernel.sharp().pull(distance, TAU), ratio, rtol=1e-10, atol=0)


def test_laplacian_sharp_kernel_is_the_papers():
    d = distances()
    expected = (TAU * (d + TAU)).log() - d / TAU
    torch.testing.assert_close(laplacian.sharp()(d, TAU), expected, rtol=1e-12, atol=1e-12)


def test_smooth_matern_tends_to_the_gaussian():
    d = distances()
    gaps = [(Matern(nu)(d, TAU).exp() - gaussian(d, TAU).exp()).abs().max().item() for nu in (0.5, 2.5, 20.5, 100.5)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 3e-3


def test_bessel_growth_is_the_ratio_of_polynomials():
    z = distances()
    theta = [torch.ones_like(z), 1 + z]
    for m in (2, 3, 4):
        theta.append((2 * m - 1) * theta[-1] + z**2 * theta[-2])
    for m, growth in enumerate(reverse_bessel_growth(z, 4), start=1):
        torch.testing.assert_close(1 + growth, theta[m] / theta[m - 1] / (2 * m - 1), rtol=1e-13, atol=0)
    assert reverse_bessel_growth(z, 0) == []


@every_kernel
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
def test_float32_is_finite_and_right_at_every_scale(kernel, plain, temperature):
    d = torch.cat([torch.zeros(1), torch.logspace(-4, 12, 60)])
    log_kernel, pull = kernel(d, temperature), kernel.pull(d, temperature)
    assert torch.isfinite(log_kernel).all() and torch.isfinite(pull).all()
    assert (log_kernel < 1e-6).all() and (pull >= 0).all()
    exact, exact_pull = kernel(d.double(), temperature), kernel.pull(d.double(), temperature)
    torch.testing.assert_close(log_kernel.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pull.double(), exact_pull, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("nu", [1.5, 2.5, 3.5])
def test_matern_does_not_overflow_where_its_polynomial_would(nu):
    d = torch.tensor([1e20, 1e30])
    log_kernel, pull = Matern(nu)(d, 1.0), Matern(nu).pull(d, 1.0)
    torch.testing.assert_close(log_kernel, -math.sqrt(2 * nu) * d)
    torch.testing.assert_close(pull, math.sqrt(2 * nu) / d)


@every_kernel
def test_temperature_may_be_a_tensor(kernel, plain):
    d, tau = distances(), torch.tensor(TAU, dtype=torch.float64)
    assert torch.equal(kernel(d, tau), kernel(d, TAU))
    assert torch.equal(kernel.pull(d, tau), kernel.pull(d, TAU))
    if kernel != InverseMultiquadric(0.5):
        torch.testing.assert_close(kernel.sharp()(d, tau), kernel.sharp()(d, TAU), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(kernel.sharp().pull(d, tau), kernel.sharp().pull(d, TAU), rtol=1e-14, atol=0)


@every_kernel
def test_kernels_leave_the_distances_alone(kernel, plain):
    d = distances()
    kernel(d, TAU), kernel.pull(d, TAU)
    assert torch.equal(d, distances())


def test_kernels_are_readable_values():
    assert [repr(k) for k in (laplacian, gaussian, Matern(1.5), InverseMultiquadric(2.0))] == [
        "laplacian",
        "gaussian",
        "Matern(nu=1.5)",
        "InverseMultiquadric(power=2.0)",
    ]
    assert "kernel=gaussian" in repr(MeanShift(kernel=gaussian))
    assert pickle.loads(pickle.dumps(laplacian)) == laplacian != gaussian
    assert Matern(1.5) == Matern(1.5) != Matern(2.5)
    assert len({laplacian, gaussian, Matern(0.5), Matern(0.5)}) == 3
    for kernel in (laplacian, Matern(2.5), InverseMultiquadric(0.5)):
        assert isinstance(kernel, DifferentiableKernel) and isinstance(kernel, SharpenableKernel)
    assert isinstance(laplacian.sharp(), DifferentiableKernel)
    assert laplacian.sharp() == SharpKernel(Matern(1.5), stretch=math.sqrt(3))


def test_refusals():
    for nu in (0, 1, -0.5, 0.7, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"nu must be 0.5, 1.5, 2.5, ... \(a closed form\), got"):
            Matern(nu)
    for power in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="power must be finite and > 0, got"):
            InverseMultiquadric(power)
    for power in (0.5, 1.0):
        with pytest.raises(ValueError, match=rf"exists for power > 1 only, got {power}; choose a larger power"):
            InverseMultiquadric(power).sharp()
