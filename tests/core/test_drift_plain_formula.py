"""The engine against plain float64 re-statements of Alg. 2 and of the whole released objective."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_formulas import algorithm_2, official_drift_loss

from drifting import DriftLoss, MeanShift, drift_field

PRINTED = MeanShift(floor=0.0)


@dataclass
class Problem:
    gen: torch.Tensor
    pos: torch.Tensor
    neg: torch.Tensor
    gen_weight: torch.Tensor
    pos_weight: torch.Tensor
    neg_weight: torch.Tensor


@st.composite
def problems(draw) -> Problem:
    size = st.integers(1, 6)
    batch, num_gen, num_pos, width = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(size), draw(size)
    num_neg = draw(st.integers(0, 4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    stretch = draw(st.sampled_from([0.1, 1.0, 30.0]))
    weighted = draw(st.booleans())

    def cloud(count: int, shift: float) -> torch.Tensor:
        return stretch * (torch.randn(batch, count, width, generator=rng, dtype=torch.float64) + shift)

    def weight(count: int) -> torch.Tensor:
        drawn = torch.rand(batch, count, generator=rng, dtype=torch.float64) * 3
        return drawn if weighted else torch.ones_like(drawn)

    return Problem(
        cloud(num_gen, 0.0),
        cloud(num_pos, 0.7),
        cloud(num_neg, -0.3),
        weight(num_gen),
        weight(num_pos),
        weight(num_neg),
    )


@given(problem=problems(), temperature=st.sampled_from([0.05, 0.5, 3.0]))
def test_floor_zero_is_algorithm_2_as_printed(problem, temperature):
    ours = drift_field(problem.gen, problem.pos, temperature=temperature, field=PRINTED)
    for v, x, y in zip(ours, problem.gen, problem.pos, strict=True):
        plain = algorithm_2(x, y, x, temperature)
        torch.testing.assert_close(v, plain, rtol=1e-11, atol=1e-12 * float(y.abs().max()))


@given(problem=problems(), temperature=st.sampled_from([0.05, 0.5, 3.0]))
def test_a_disjoint_negative_batch_is_algorithm_2_without_the_mask(problem, temperature):
    other = problem.gen.flip(0) * 0.9 + 0.1
    ours = drift_field(problem.gen, problem.pos, self_ref=other, temperature=temperature, field=PRINTED)
    for v, x, y, z in zip(ours, problem.gen, problem.pos, other, strict=True):
        plain = algorithm_2(x, y, z, temperature)
        torch.testing.assert_close(v, plain, rtol=1e-11, atol=1e-12 * float(y.abs().max() + z.abs().max()))


@given(
    problem=problems(),
    temperatures=st.sampled_from([(0.05,), (0.02, 0.05, 0.2), (0.3, 0.11)]),
    normalize_features=st.booleans(),
    normalize_drift=st.booleans(),
    floor=st.sampled_from([0.0, 1e-3, 0.05]),
)
def test_loss_drift_and_statistics_equal_the_released_objective(
    problem, temperatures, normalize_features, normalize_drift, floor
):
    expected = official_drift_loss(
        **vars(problem),
        temperatures=temperatures,
        normalize_features=normalize_features,
        normalize_drift=normalize_drift,
        floor=floor,
    )
    loss = DriftLoss(temperatures, MeanShift(floor=floor), normalize_features, normalize_drift)
    gen = problem.gen.clone().requires_grad_()
    without_neg = problem.neg.shape[1] == 0
    terms = loss.terms(
        gen,
        problem.pos,
        None if without_neg else problem.neg,
        gen_weight=problem.gen_weight,
        pos_weight=problem.pos_weight,
        neg_weight=None if without_neg else problem.neg_weight,
    )
    terms.loss.mean().backward()

    # Dot products lose digits of near pairs; the force of each temperature is normalised, so relative to one.
    close = {"rtol": 1e-9, "atol": 1e-9 * float(expected.drift.abs().max()) + 1e-300}
    torch.testing.assert_close(terms.scale, expected.scale, rtol=1e-11, atol=0)
    torch.testing.assert_close(terms.drift, expected.drift, **close)
    torch.testing.assert_close(terms.loss.detach(), expected.loss, rtol=1e-8, atol=1e-300)
    # Matching autograd's square of a frozen target: 2 (x/S - target)/(G D) / S, and the mean over problems.
    gradient = -2 * expected.drift / (expected.drift[0].numel() * expected.unit * len(expected.drift))
    torch.testing.assert_close(gen.grad, gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()) + 1e-300)
    for rms, mean_square in zip(terms.drift_rms, expected.mean_square, strict=True):
        torch.testing.assert_close(rms**2, mean_square, rtol=1e-9, atol=1e-300)


def test_drift_field_is_the_loss_without_normalisation():
    rng = torch.Generator().manual_seed(0)
    gen, pos, neg = (torch.randn(2, n, 5, generator=rng, dtype=torch.float64) for n in (4, 6, 3))
    loss = DriftLoss((0.3,), normalize_features=False, normalize_drift=False)
    field = drift_field(gen, pos, neg, temperature=0.3, neg_weight=torch.tensor([0.5, 2.0]))
    terms = loss.terms(gen, pos, neg, neg_weight=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(field, terms.drift, rtol=1e-13, atol=0)


@pytest.mark.parametrize("temperature", [0.02, 0.2, 50.0])
def test_the_mask_removes_self_pairs_at_every_temperature(temperature):
    """A finite penalty on self distances, as printed, fades once temperature nears it; here the mask is exact."""
    gen = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    pos = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    v = drift_field(gen, pos, temperature=temperature, field=PRINTED)[0]
    kernel = torch.exp(-torch.tensor([[1.0, 2.0], [1.0, 5.0**0.5]], dtype=torch.float64) / temperature)
    for i, (other, own) in enumerate([(gen[0, 1], gen[0, 0]), (gen[0, 0], gen[0, 1])]):
        row = kernel[i].sum()
        repel = kernel[i, 0] / (row * kernel[i, 0]).sqrt()  # its column holds nothing but itself
        attract = kernel[i, 1] / (row * kernel[:, 1].sum()).sqrt()
        expected = repel * attract * (pos[0, 0] - own) - attract * repel * (other - own)
        torch.testing.assert_close(v[i], expected, rtol=1e-12, atol=1e-14)
