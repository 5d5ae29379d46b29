"""KernelGradient, Sharp and Mmd: each is the gradient that it claims to be, by autograd of the plain formula."""

import math
import re

import pytest
import torch
from field_formulas import KERNELS, affinities, ask, clouds, density, direct_drift, some_weights

from drifting import gaussian, laplacian
from drifting.fields import Coupling, KernelGradient, Mmd, Sharp
from drifting.kernels import InverseMultiquadric, Matern

TAU = 0.7
every_kernel = pytest.mark.parametrize("kernel, plain", KERNELS.values(), ids=KERNELS.keys())
SHARP = {name: pair for name, pair in KERNELS.items() if name != "imq_1_2"}
every_sharp_kernel = pytest.mark.parametrize("kernel, plain", SHARP.values(), ids=SHARP.keys())
settings = pytest.mark.parametrize("second_batch", [False, True], ids=["own batch", "second batch"])
guided = pytest.mark.parametrize("with_negatives", [False, True], ids=["plain", "guided"])


class Problem:
    """Weighted clouds, with or without a second batch and extra negatives."""

    def __init__(self, second_batch: bool, with_negatives: bool) -> None:
        self.gen, self.pos, neg, ref = clouds(5, 7, 3, 6)
        self.ref = ref if second_batch else None
        self.neg = neg if with_negatives else None
        self.own_weight, self.neg_weight, self.pos_weight = some_weights(6 if second_batch else 5, 3, 7)
        self.weights = [self.own_weight, *([self.neg_weight] if with_negatives else []), self.pos_weight]

    def sides(self, x: torch.Tensor) -> tuple[list, list]:
        """(y, weight, own) of the negatives and of the positives, with references held fixed."""
        own = (x.detach() if self.ref is None else self.ref, self.own_weight, self.ref is None)
        extra = [] if self.neg is None else [(self.neg, self.neg_weight, False)]
        return [own, *extra], [(self.pos, self.pos_weight, False)]

    def drift(self, field) -> torch.Tensor:
        return direct_drift(
            field, self.gen, self.pos, self.neg, self_ref=self.ref, temperature=TAU, weights=self.weights
        )


@every_kernel
@settings
@guided
def test_kernel_gradient_is_the_gradient_of_the_log_density_ratio(kernel, plain, second_batch, with_negatives):
    problem = Problem(second_batch, with_negatives)
    x = problem.gen.clone().requires_grad_()
    negatives, positives = problem.sides(x)
    log_ratio = density(plain, x, positives, TAU).log() - density(plain, x, negatives, TAU).log()
    (slope,) = torch.autograd.grad(log_ratio.sum(), x)
    torch.testing.assert_close(problem.drift(KernelGradient(kernel)), TAU**2 * slope, rtol=1e-8, atol=1e-10)


@every_sharp_kernel
@settings
@guided
def test_sharp_is_the_gradient_of_the_log_ratio_of_sharp_masses(kernel, plain, second_batch, with_negatives):
    problem = Problem(second_batch, with_negatives)
    x = problem.gen.clone().requires_grad_()

    def sharp(r: torch.Tensor) -> torch.Tensor:
        return kernel.sharp()(r, 1.0).exp()  # the integral of the plain kernel: test_kernels.py

    negatives, positives = problem.sides(x)
    log_ratio = density(sharp, x, positives, TAU).log() - density(sharp, x, negatives, TAU).log()
    (slope,) = torch.autograd.grad(log_ratio.sum(), x)
    torch.testing.assert_close(problem.drift(Sharp(kernel)), TAU**2 * slope, rtol=1e-8, atol=1e-10)


@every_sharp_kernel
def test_sharp_is_the_papers_quotient(kernel, plain):
    """sum k (y+ - x) / sum k# - sum k (y- - x) / sum k#, times tau^2."""
    gen, pos, ref = clouds(5, 7, 6)
    expected = 0
    for sign, y in ((1, pos), (-1, ref)):
        difference = y[:, None] - gen[:, :, None]
        distance = difference.norm(dim=-1)
        mass = kernel.sharp()(distance, TAU).exp().sum(-1, keepdim=True)
        expected = expected + sign * TAU**2 * (plain(distance / TAU)[..., None] * difference).sum(2) / mass
    torch.testing.assert_close(
        direct_drift(Sharp(kernel), gen, pos, self_ref=ref, temperature=TAU), expected, rtol=1e-10, atol=1e-12
    )


@every_kernel
@guided
def test_mmd_is_minus_the_gradient_of_the_squared_discrepancy(kernel, plain, with_negatives):
    """Own batch: both arguments of every kernel move, q is the mixture (1 - gamma) q + gamma p_uncond."""
    gen, pos, neg = clouds(5, 7, 3)
    neg_weight, pos_weight = some_weights(3, 7)
    if not with_negatives:
        neg_weight = torch.zeros_like(neg_weight)
    one = torch.ones(2, 5, dtype=torch.float64)
    x = gen.clone().requires_grad_()

    def mean(a, b, weight_a, weight_b, own: bool = False) -> torch.Tensor:
        """E k over pairs, without a sample and itself; [B]."""
        total = (weight_a[:, :, None] * affinities(plain, a, b, weight_b, TAU, own=own)).sum((1, 2))
        return total / (weight_a.sum(-1) * weight_b.sum(-1) * ((b.shape[1] - 1) / b.shape[1] if own else 1))

    gamma = neg_weight.sum(-1) / (4 + neg_weight.sum(-1))
    unconditional = neg_weight if with_negatives else torch.ones_like(neg_weight)  # any, where gamma is zero
    square = (
        (1 - gamma) ** 2 * mean(x, x, one, one, own=True)
        + 2 * gamma * (1 - gamma) * mean(x, neg, one, unconditional)
        - 2 * (1 - gamma) * mean(x, pos, one, pos_weight)
    )
    (slope,) = torch.autograd.grad((square * -5 * TAU**2 / (2 * (1 - gamma))).sum(), x)
    drift = direct_drift(Mmd(kernel), gen, pos, neg, temperature=TAU, weights=[one, neg_weight, pos_weight])
    torch.testing.assert_close(drift, slope, rtol=1e-8, atol=1e-10)


@every_kernel
@settings
@guided
def test_mmd_is_the_gradient_of_the_difference_of_densities(kernel, plain, second_batch, with_negatives):
    problem = Problem(second_batch, with_negatives)
    x = problem.gen.clone().requires_grad_()
    negatives, positives = problem.sides(x)
    (slope,) = torch.autograd.grad((density(plain, x, positives, TAU) - density(plain, x, negatives, TAU)).sum(), x)
    torch.testing.assert_close(problem.drift(Mmd(kernel)), TAU**2 * slope, rtol=1e-8, atol=1e-10)


def test_mmd_of_a_wide_laplacian_is_the_energy_distance():
    gen, pos, ref = clouds(5, 7, 6)
    x = gen.clone().requires_grad_()
    energy = sum(
        sign * 2 * (x[:, :, None] - y[:, None]).norm(dim=-1).mean(-1).sum() for sign, y in ((1, pos), (-1, ref))
    )
    (slope,) = torch.autograd.grad(energy, x)
    drift = direct_drift(Mmd(laplacian), gen, pos, self_ref=ref, temperature=1e7)
    torch.testing.assert_close(drift / 1e7, -slope / 2, rtol=1e-5, atol=1e-6)


def test_gaussian_kernel_gradient_is_the_difference_of_two_mean_shifts():
    gen, pos, ref = clouds(5, 7, 6)
    shifts = [
        (-(gen[:, :, None] - y[:, None]).square().sum(-1) / (2 * TAU**2)).softmax(-1) @ y - gen for y in (pos, ref)
    ]
    for field in (KernelGradient(gaussian), Sharp(gaussian)):
        drift = direct_drift(field, gen, pos, self_ref=ref, temperature=TAU)
        torch.testing.assert_close(drift, shifts[0] - shifts[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_sharp_matern_is_the_kernel_gradient_of_the_next_order(nu):
    gen, pos = clouds(5, 7)
    stretch = math.sqrt((nu + 1) / nu)
    next_order = direct_drift(KernelGradient(Matern(nu + 1)), gen, pos, temperature=stretch * TAU) / stretch**2
    torch.testing.assert_close(
        direct_drift(Sharp(Matern(nu)), gen, pos, temperature=TAU), next_order, rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", ["laplacian", "imq_5_2", "gaussian"])
def test_sharp_and_kernel_gradient_are_conservative_where_mean_shift_is_not(name):
    """Symmetric Jacobian of V at a probe with references held fixed; sum k (y - x) / sum k for the mean shift."""
    kernel, plain = KERNELS[name]
    probe, pos, ref = clouds(1, 7, 6, batch=1)

    def mean_shift(distance, columns, **_):
        k = plain(distance / TAU)
        negative, positive = k.split([columns.num_negative, columns.num_pos], dim=-1)
        parts = [-negative / negative.sum(-1, keepdim=True), positive / positive.sum(-1, keepdim=True)]
        return Coupling(torch.cat(parts, dim=-1), balanced=True, contact=None)

    def asymmetry(field) -> float:
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[:, None]
        ahead, behind = (
            direct_drift(field, probe + s, pos.expand(3, -1, -1), self_ref=ref.expand(3, -1, -1), temperature=TAU)
            for s in (step, -step)
        )
        jacobian = (ahead - behind)[:, 0] / 2e-5
        return float((jacobian - jacobian.mT).abs().max() / jacobian.abs().max())

    assert asymmetry(Sharp(kernel)) < 1e-7 > asymmetry(KernelGradient(kernel))
    assert (asymmetry(mean_shift) > 1e-2) == (name != "gaussian")


FIELDS = [KernelGradient(laplacian), KernelGradient(gaussian), Sharp(laplacian), Mmd(laplacian), Mmd(Matern(1.5))]


def name_of(field) -> str:
    """Without addresses of functions, which differ between the processes that share the tests."""
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", str(field))


every_field = pytest.mark.parametrize("field", FIELDS, ids=name_of)


@every_field
@settings
def test_weights_are_masses(field, second_batch):
    """Weight 2 is a duplicate, weight 0 is absent, and only proportions within a side count."""
    gen, pos, neg, ref = clouds(5, 7, 3, 6)
    named = {"temperature": TAU, "self_ref": ref if second_batch else None}
    own = torch.ones(2, 6 if second_batch else 5, dtype=torch.float64)
    neg_weight, pos_weight = some_weights(3, 7)
    given = direct_drift(field, gen, pos, neg, weights=[own, neg_weight, pos_weight], **named)
    for side, sample in (("neg", neg), ("pos", pos)):
        halves = {"neg": neg_weight, "pos": pos_weight}
        halves[side] = torch.cat([halves[side] / 2, halves[side] / 2], dim=-1)
        blocks = {"neg": neg, "pos": pos} | {side: torch.cat([sample, sample], dim=1)}
        split = direct_drift(field, gen, blocks["pos"], blocks["neg"], weights=[own, *halves.values()], **named)
        torch.testing.assert_close(split, given, rtol=1e-10, atol=1e-12)
    scaled = direct_drift(field, gen, pos, neg, weights=[3 * own, 3 * neg_weight, 0.1 * pos_weight], **named)
    torch.testing.assert_close(scaled, given, rtol=1e-10, atol=1e-12)
    zero = direct_drift(field, gen, pos, neg, weights=[own, 0 * neg_weight, pos_weight], **named)
    absent = direct_drift(field, gen, pos, weights=[own, pos_weight], **named)
    torch.testing.assert_close(zero, absent, rtol=1e-12, atol=1e-14)


@every_field
def test_a_sample_does_not_repel_itself(field):
    """Its own kernel would be all that it sees at low temperature. Left out, its weight does not matter either."""
    gen, pos = clouds(5, 7)
    given = direct_drift(field, gen, pos, temperature=TAU)
    heavy = torch.ones(2, 5, dtype=torch.float64)
    heavy[:, 2] = 50.0
    moved = direct_drift(field, gen, pos, temperature=TAU, weights=[heavy, torch.ones(2, 7, dtype=torch.float64)])
    torch.testing.assert_close(moved[:, 2], given[:, 2], rtol=1e-12, atol=1e-14)
    assert (moved[:, 0] - given[:, 0]).abs().max() > 1e-3
    # Two samples close together, the data far to the right: each flees the other even at low temperature.
    pair = torch.tensor([[[0.0], [0.01]]], dtype=torch.float64)
    far = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    drift = direct_drift(field, pair, far, temperature=0.05)
    assert drift[0, 0, 0] < -1e-3 and drift[0, 1, 0] > 1e-3


@every_field
def test_contact_is_the_mean_kernel(field):
    gen, pos, neg = clouds(5, 7, 3)
    plain = KERNELS["matern_3_2"][1] if field.kernel == Matern(1.5) else KERNELS[repr(field.kernel)][1]
    contact = ask(field, gen, pos, neg, temperature=TAU).contact
    one = {n: torch.ones(2, n, dtype=torch.float64) for n in (5, 7, 3)}
    positive = density(plain, gen, [(pos, one[7], False)], TAU).mean(-1)
    negative = density(plain, gen, [(gen, one[5], True), (neg, one[3], False)], TAU).mean(-1)
    torch.testing.assert_close(contact.positive_mass, positive)
    torch.testing.assert_close(contact.negative_mass, negative)
    assert contact.floor_share is contact.plan_error is contact.sweeps is None


def test_refused_without_a_kernel_that_knows_its_gradient():
    for make in (KernelGradient, Mmd, Sharp):
        for kernel in (lambda d, tau: -d / tau, Matern, "laplacian"):
            with pytest.raises(ValueError, match=rf"{make.__name__}: kernel must be an object that knows its .*got "):
                make(kernel)
    with pytest.raises(ValueError, match=r"Sharp: kernel must be .*got SharpKernel\("):
        Sharp(laplacian.sharp())
    with pytest.raises(ValueError, match=r"exists for power > 1 only, got 1\.0"):
        Sharp(InverseMultiquadric(1.0))
    assert KernelGradient(InverseMultiquadric(1.0)) and KernelGradient(laplacian.sharp())
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="largest_weight must be finite and > 0"):
            KernelGradient(largest_weight=value)


@every_field
def test_refused_without_mass(field):
    gen, pos, neg = clouds(5, 7, 3)
    one = {n: torch.ones(2, n, dtype=torch.float64) for n in (5, 7, 3)}
    with pytest.raises(ValueError, match=r"pos_weight must be > 0 somewhere in every problem.*problems \[0, 1\]"):
        ask(field, gen, pos, weights=[one[5], 0 * one[7]])
    alone = 0 * one[5]
    alone[1] = 1.0
    alone[0, 3] = 1.0  # sample 3 of problem 0 has nobody else
    with pytest.raises(ValueError, match=r"gen_weight \(or neg_weight\) must be > 0.*problems \[0\]"):
        ask(field, gen, pos, weights=[alone, one[7]])
    assert torch.isfinite(ask(field, gen, pos, neg, weights=[alone, one[3], one[7]]).coefficients).all()
