"""Figures of rollouts: Diffusion Policy's means, intervals that other initial conditions confirm, latency."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from domains.robotics.evaluation import action_latency, mean_interval, run_figures, wilson_interval
from domains.robotics.rollout import EpisodeResult


def episodes(*rewards, stages=None):
    done = stages or [int(reward == 1) for reward in rewards]
    return [
        EpisodeResult(
            seed=100_000 + index, max_reward=reward, success=reward == 1, stages=count, steps=10 * (index + 1)
        )
        for index, (reward, count) in enumerate(zip(rewards, done, strict=True))
    ]


def test_the_score_is_the_mean_over_checkpoints_not_the_best():
    figures = run_figures({200: episodes(1.0, 0.5, 0.0), 100: episodes(0.2, 0.0, 0.1)}, stages=1)
    assert figures["test/mean_score"] == pytest.approx((0.5 + 0.1) / 2)
    assert figures["test/success_rate"] == pytest.approx(1 / 6)
    assert [row["step"] for row in figures["checkpoints"]] == [100, 200]
    assert [row["mean_score"] for row in figures["checkpoints"]] == pytest.approx([0.1, 0.5])
    assert [np.mean(row["scores"]) for row in figures["checkpoints"]] == pytest.approx([0.1, 0.5])
    assert figures["checkpoints"][1]["scores"] == [1.0, 0.5, 0.0]
    # Of single episodes those of the newest checkpoint.
    assert [figures[f"test/sim_max_reward_{seed}"] for seed in (100_000, 100_001, 100_002)] == [1.0, 0.5, 0.0]
    assert figures["test/mean_steps"] == 20
    assert "test/p1" not in figures


def test_phases_are_shares_that_did_at_least_so_many_stages():
    results = {
        100: episodes(0.0, 0.5, 1.0, 1.0, stages=[0, 1, 2, 2]),
        200: episodes(1.0, 1.0, 1.0, 1.0, stages=[2] * 4),
    }
    figures = run_figures(results, stages=2)
    assert figures["test/p1"] == pytest.approx((0.75 + 1) / 2)
    assert figures["test/p2"] == pytest.approx((0.5 + 1) / 2)


def test_checkpoints_must_have_played_the_same_episodes():
    with pytest.raises(ValueError, match="the same seeds"):
        run_figures({100: episodes(1.0, 0.0), 200: episodes(1.0)}, stages=1)
    with pytest.raises(ValueError, match="one checkpoint or more"):
        run_figures({}, stages=1)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(1.0, 10, (0.7225, 1.0)), (0.0, 10, (0.0, 0.2775)), (0.5, 100, (0.4038, 0.5962)), (0.9, 50, (0.7864, 0.9565))],
)
def test_wilson_s_interval(share, count, expected):
    assert wilson_interval(share, count) == pytest.approx(expected, abs=1e-4)


def test_wilson_s_interval_solves_its_equation():
    for end in wilson_interval(0.3, 40):  # |share - end| = z sqrt(end (1 - end) / n)
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 40))


def test_the_interval_of_graded_scores_is_that_of_their_mean():
    scores = np.random.default_rng(0).uniform(0, 1, (1, 400))
    low, high = mean_interval(scores)
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.004)
    assert high == pytest.approx(scores.mean() + half, abs=0.004)


def test_more_checkpoints_do_not_narrow_the_interval():
    scores = np.random.default_rng(0).uniform(0, 1, (1, 50))
    assert mean_interval(np.repeat(scores, 10, axis=0)) == pytest.approx(mean_interval(scores))
    binary = (scores > 0.3).astype(float)
    assert mean_interval(np.repeat(binary, 10, axis=0)) == pytest.approx(wilson_interval(binary.mean(), 50))


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(1)
    covered = {"graded": 0, "binary": 0}
    for _ in range(200):
        graded, binary = draw.beta(2, 1, (1, 50)), (draw.uniform(size=(1, 50)) < 0.9).astype(float)
        for name, scores, truth in (("graded", graded, 2 / 3), ("binary", binary, 0.9)):
            low, high = mean_interval(scores)
            covered[name] += low <= truth <= high
    assert all(0.9 <= count / 200 <= 0.99 for count in covered.values())


def test_wrong_scores():
    with pytest.raises(ValueError, match=r"scores must be \[C, N\]"):
        mean_interval(np.zeros(3))
    with pytest.raises(ValueError, match="share must be in"):
        wilson_interval(1.2, 10)


def test_latency_is_the_time_of_single_calls():
    seen = []

    def act(observation, generator):
        seen.append(tuple(observation["state"].shape))
        time.sleep(0.003 if len(seen) % 10 else 0.03)
        return torch.zeros(1, 8, 2)

    latency = action_latency(SimpleNamespace(act=act), {"state": np.zeros((2, 16), np.float32)}, 2, calls=40)
    assert set(seen) == {(1, 2, 16)}
    assert latency.calls == 40
    assert 3 <= latency.p50_ms < 30 <= latency.p99_ms


def test_slow_policies_are_timed_by_fewer_calls():
    policy = SimpleNamespace(act=lambda observation, generator: (time.sleep(0.005), torch.zeros(1, 8, 2))[1])
    latency = action_latency(policy, {"state": np.zeros((2, 16), np.float32)}, 2, calls=500, seconds=0.15)
    assert 20 <= latency.calls < 40
