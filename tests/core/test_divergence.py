"""f-divergences: each weight makes the kernel gradient the Wasserstein gradient flow of its divergence."""

import pytest
import torch
from field_formulas import KERNELS, clouds, density, direct_drift

from drifting import gaussian
from drifting.fields import (
    KernelGradient,
    chi_squared_data_gen,
    chi_squared_gen_data,
    kl_data_gen,
    kl_gen_data,
)
from drifting.kernels import Matern

TAU = 0.7
GENERATORS = {  # D(q) = int p f(q / p)
    kl_gen_data: lambda u: u * u.log(),
    kl_data_gen: lambda u: -u.log(),
    chi_squared_gen_data: lambda u: (u - 1) ** 2,
    chi_squared_data_gen: lambda u: (1 - u) ** 2 / u,
}
every_divergence = pytest.mark.parametrize("weight, f", GENERATORS.items(), ids=lambda v: v.__name__)


def slope_of(f, u: torch.Tensor) -> torch.Tensor:
    """f'(u), differentiable."""
    return torch.autograd.grad(f(u).sum(), u, create_graph=True)[0]


@every_divergence
@pytest.mark.parametrize("name", ["gaussian", "matern_3_2"])
def test_field_is_the_gradient_of_the_first_variation(weight, f, name):
    """V = -tau^2 grad_x f'(q_k / p_k)."""
    kernel, plain = KERNELS[name]
    gen, pos, ref = clouds(5, 7, 6)
    x = gen.clone().requires_grad_()
    one = {n: torch.ones(2, n, dtype=torch.float64) for n in (7, 6)}
    u = density(plain, x, [(ref, one[6], False)], TAU) / density(plain, x, [(pos, one[7], False)], TAU)
    (slope,) = torch.autograd.grad(slope_of(f, u).sum(), x)
    field = KernelGradient(kernel, divergence=weight, largest_weight=1e9)
    drift = direct_drift(field, gen, pos, self_ref=ref, temperature=TAU)
    torch.testing.assert_close(drift, -(TAU**2) * slope, rtol=1e-8, atol=1e-10)


@every_divergence
def test_the_velocity_descends_the_divergence_at_the_rate_of_its_own_square(weight, f):
    """Moving q with v: dD/dt = -int q v . (u f'' grad log p/q), by finite difference on a grid, for a shift v = 1."""
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    step = float(z[1] - z[0])

    def normal(mean: float) -> torch.Tensor:
        return (-((z - mean) ** 2) / 2).exp() / (2 * torch.pi) ** 0.5

    def divergence(shift: float) -> float:
        p, q = normal(0.0), normal(0.8 + shift)
        return float((p * f(q / p)).sum() * step)

    log_ratio = normal(0.0).log() - normal(0.8).log()
    flow = weight(log_ratio) * torch.gradient(log_ratio, spacing=step)[0]
    change = (divergence(1e-4) - divergence(-1e-4)) / 2e-4
    assert -(normal(0.8) * flow).sum().item() * step == pytest.approx(change, rel=1e-5)


def test_far_samples_have_a_bounded_weight():
    gen, pos, ref = clouds(5, 7, 6)
    for weight in GENERATORS:
        bounded = KernelGradient(gaussian, divergence=weight, largest_weight=3.0)
        for temperature in (1e-6, TAU, 1e6):
            drift = direct_drift(bounded, gen, 30 + pos, self_ref=ref, temperature=temperature)
            plain = direct_drift(KernelGradient(gaussian), gen, 30 + pos, self_ref=ref, temperature=temperature)
            assert (drift.norm(dim=-1) <= 3 * plain.norm(dim=-1) * (1 + 1e-12)).all()


@every_divergence
def test_nothing_moves_where_the_densities_agree(weight, f):
    gen, pos = clouds(5, 7)
    drift = direct_drift(KernelGradient(Matern(2.5), divergence=weight), gen, pos, self_ref=pos.flip(1))
    torch.testing.assert_close(drift, torch.zeros_like(gen), rtol=0, atol=1e-13)


def test_weights_tell_who_moves():
    log_ratio = torch.tensor([-2.0, 0.0, 2.0])  # far from data, at rest, next to uncovered data
    assert torch.equal(kl_gen_data(log_ratio), torch.ones(3))
    for weight in (kl_data_gen, chi_squared_data_gen):
        assert (weight(log_ratio).diff() > 0).all()
    assert (chi_squared_gen_data(log_ratio).diff() < 0).all()
