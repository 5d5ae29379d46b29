import pytest
import torch
from small_policies import Batch, drifting

from domains.robotics.config import HeldOutConfig
from domains.robotics.held_out import chunk_figures, held_out_figures


def drawn(spread=1.0, shift=0.0, windows=600, num=16, seed=0):
    """Experts N(0, 1) at every dimension; samples N(shift, spread^2)."""
    rng = torch.Generator().manual_seed(seed)
    expert = torch.randn(windows, 6, 2, generator=rng)
    return shift + spread * torch.randn(windows, num, 6, 2, generator=rng), expert


def test_calibrated_samples():
    figures = chunk_figures(*drawn())
    assert figures["ssr"] == pytest.approx(1, abs=0.03)
    assert figures["spread"] == pytest.approx(1, abs=0.02)
    assert figures["jerk"] == pytest.approx(1, abs=0.04)
    assert figures["mse"] == pytest.approx(1 + 1 / 16, abs=0.03)


def test_overconfident_and_timid_samples():
    assert chunk_figures(*drawn(spread=0.5))["ssr"] < 0.6
    assert chunk_figures(*drawn(spread=2.0))["ssr"] > 1.6


@pytest.mark.parametrize("wrong", [{"spread": 0.5}, {"spread": 1.7}, {"shift": 0.5}, {"spread": 0.0}])
def test_the_energy_score_is_lowest_for_the_truth(wrong):
    assert chunk_figures(*drawn())["es"] < chunk_figures(*drawn(**wrong))["es"] - 0.01


def test_the_energy_score_of_two_points():
    samples = torch.zeros(1, 2, 3, 1)
    samples[0, 1] = 2.0
    figures = chunk_figures(samples, torch.tensor([0.0, 1.0, 0.0])[None, :, None])
    root = 3**0.5
    expected = ((1 + (4 + 1 + 4) ** 0.5) / 2 - 2 * root / 2) / root
    assert figures["es"] == pytest.approx(expected)
    assert figures["best"] == pytest.approx(1 / 3)
    assert figures["mse"] == pytest.approx(2 / 3)


def test_the_energy_score_does_not_depend_on_the_number_of_samples():
    assert chunk_figures(*drawn(num=4))["es"] == pytest.approx(float(chunk_figures(*drawn(num=64))["es"]), abs=0.01)


def test_jerk_of_trembling_samples():
    samples, expert = drawn()
    smooth = torch.linspace(0, 1, 6)[None, :, None].square().expand_as(expert)
    assert chunk_figures(smooth[:, None].expand_as(samples), smooth)["jerk"] == pytest.approx(1)
    assert chunk_figures(smooth[:, None] + 0.1 * samples, smooth)["jerk"] > 2


@pytest.mark.parametrize("steps", [1, 2])
def test_short_chunks_have_no_jerk(steps):
    samples, expert = drawn()
    figures = chunk_figures(samples[:, :, :steps], expert[:, :steps])
    assert set(figures) == {"mse", "best", "spread", "ssr", "es"}
    assert figures["ssr"] == pytest.approx(1, abs=0.06)


def test_a_policy_is_judged_by_the_same_noise_every_time():
    policy, windows = drifting(), Batch(20)
    config = HeldOutConfig(samples=4)
    first, again = (held_out_figures(policy, windows, config, seed=3) for _ in range(2))
    assert first == again
    assert set(first) == {f"held_out/{name}" for name in ("mse", "best", "spread", "ssr", "es", "jerk")}
    assert held_out_figures(policy, windows, config, seed=4) != first


def test_figures_are_in_normalised_units():
    policy, windows = drifting(), Batch(20)
    policy.actions.normalizer.half_range.fill_(1e3)  # plain actions are a thousand times as large as the network's
    assert held_out_figures(policy, windows, HeldOutConfig(samples=4), seed=3)["held_out/mse"] < 10


def test_refusals():
    with pytest.raises(ValueError, match="n >= 2"):
        chunk_figures(torch.zeros(3, 1, 6, 2), torch.zeros(3, 6, 2))
    with pytest.raises(ValueError, match="samples must be"):
        chunk_figures(torch.zeros(3, 4, 6, 2), torch.zeros(3, 5, 2))
