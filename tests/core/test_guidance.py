"""Training-time guidance: the law of alpha and the weight of unconditional negatives (A.7)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import GuidanceRange, guidance_weight


def cumulative(alpha: torch.Tensor, low: float, high: float, power: float) -> torch.Tensor:
    """Distribution function of p(alpha) ~ alpha^-power on [low, high]."""
    if power == 1:
        return torch.log(alpha / low) / math.log(high / low)
    e = 1.0 - power
    return (alpha**e - low**e) / (high**e - low**e)


@given(
    low=st.floats(1.0, 3.0),
    width=st.floats(0.1, 5.0),
    power=st.one_of(st.sampled_from([1.0, 3.0, 5.0]), st.floats(-4.0, 8.0).filter(lambda k: abs(k - 1) > 1e-3)),
)
def test_quantiles_invert_the_distribution_function(low, width, power):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = GuidanceRange(low, low + width, power).quantile(u)
    torch.testing.assert_close(cumulative(alpha, low, low + width, power), u, rtol=1e-7, atol=1e-9)
    assert alpha[0].item() == pytest.approx(low, rel=1e-12)
    assert alpha[-1].item() == pytest.approx(low + width, rel=1e-9)


@pytest.mark.parametrize("near", [1e-12, 1e-7, 1e-6, 1e-5, 1e-4, -1e-5])
def test_power_one_is_a_smooth_limit_in_float32(near):
    u = torch.linspace(0, 1, 101)
    torch.testing.assert_close(
        GuidanceRange(power=1 + near).quantile(u), GuidanceRange(power=1.0).quantile(u), rtol=2e-4, atol=0
    )
    exact = GuidanceRange(power=1 + near).quantile(u.double())
    torch.testing.assert_close(GuidanceRange(power=1 + near).quantile(u).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [-30.0, 1.0, 3.0, 200.0])
def test_quantiles_stay_inside_the_range(power):
    law = GuidanceRange(1.1, 4.7, power)
    alpha = law.quantile(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))
    assert alpha.min() >= 1.1 - 1e-7 and alpha.max() <= 4.7 + 1e-6
    assert torch.isfinite(law.quantile(torch.tensor([0.0, 1.0]))).all()


def test_a_point_range_is_a_constant():
    assert (GuidanceRange(2.0, 2.0).quantile(torch.linspace(0, 1, 5)) == 2.0).all()


def test_sampled_moments_are_those_of_the_law():
    """Power 3 on [1, 4]: mean 1.6, median 1.37, P(alpha > 2) = 0.2."""
    alpha = GuidanceRange(1.0, 4.0, 3.0).sample(200_000, torch.Generator().manual_seed(0))
    assert alpha.shape == (200_000,) and alpha.dtype == torch.float32
    assert alpha.mean().item() == pytest.approx(1.6, abs=0.006)
    assert alpha.median().item() == pytest.approx((1 - 0.5 * 15 / 16) ** -0.5, abs=0.005)
    assert (alpha > 2).float().mean().item() == pytest.approx(0.2, abs=0.004)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_off_probability_is_the_share_without_guidance(share):
    alpha = GuidanceRange(1.5, 4.0, 3.0, off_probability=share).sample(100_000, torch.Generator().manual_seed(1))
    assert (alpha == 1).float().mean().item() == pytest.approx(share, abs=0.006)
    rest = alpha[alpha != 1]
    if share < 1:
        assert rest.min() >= 1.5
        law = GuidanceRange(1.5, 4.0, 3.0)
        assert rest.median().item() == pytest.approx(law.quantile(torch.tensor(0.5)).item(), abs=0.02)


def test_draws_follow_the_generator():
    law = GuidanceRange(off_probability=0.3)
    first = law.sample(50, torch.Generator().manual_seed(5))
    assert torch.equal(first, law.sample(50, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, law.sample(50, torch.Generator().manual_seed(6)))
    assert law.sample(0).shape == (0,)


@given(alpha=st.floats(1.0, 10.0), num_gen=st.integers(2, 128), num_uncond=st.integers(1, 128))
def test_weight_gives_back_its_guidance_scale(alpha, num_gen, num_uncond):
    w = guidance_weight(torch.tensor(alpha, dtype=torch.float64), num_gen, num_uncond).item()
    assert w == pytest.approx((alpha - 1) * (num_gen - 1) / num_uncond, rel=1e-12)
    assert ((num_gen - 1) + num_uncond * w) / (num_gen - 1) == pytest.approx(alpha, rel=1e-12)
    gamma = num_uncond * w / ((num_gen - 1) + num_uncond * w)
    assert 1 / (1 - gamma) == pytest.approx(alpha, rel=1e-12)


def test_weights_keep_the_shape_and_no_guidance_weighs_nothing():
    alpha = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(guidance_weight(alpha, 64, 32), (alpha - 1) * 63 / 32)
    assert guidance_weight(torch.ones(3), 64, 32).eq(0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidance_weight(torch.ones(1), 1, 4), "num_gen must be >= 2.*got 1"),
        (lambda: guidance_weight(torch.ones(1), 4, 0), "num_uncond must be >= 1, got 0"),
        (lambda: GuidanceRange(low=0.5), "1 <= low <= high < inf, got low=0.5, high=4.0"),
        (lambda: GuidanceRange(low=3.0, high=2.0), "got low=3.0, high=2.0"),
        (lambda: GuidanceRange(high=math.inf), "high=inf"),
        (lambda: GuidanceRange(low=math.nan), "low=nan"),
        (lambda: GuidanceRange(power=math.inf), "power must be finite, got inf"),
        (lambda: GuidanceRange(power=math.nan), "power must be finite, got nan"),
        (lambda: GuidanceRange(off_probability=1.1), r"off_probability must lie in \[0, 1\], got 1.1"),
        (lambda: GuidanceRange(off_probability=math.nan), "off_probability .* got nan"),
    ],
)
def test_refusals_name_the_argument_and_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
