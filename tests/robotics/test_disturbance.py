"""What is executed on top of an expert's actions: noise as drawn, pushes that last, and the hand alone is pushed."""

import numpy as np
import pytest
from small_demonstrations import LIFT

from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.disturbance import PUSH_SIZE, PUSH_STEPS, Disturbance
from domains.robotics.demonstrations.scripted import demonstration_disturbance, demonstrations_path


def steps(disturbance, action_dim, count, seed=0):
    episode = disturbance.episode(action_dim, np.random.default_rng(seed))
    return np.stack([episode.step() for _ in range(count)])


def test_noise_alone_is_white_and_as_strong_as_asked():
    drawn = steps(Disturbance(noise=0.25), 7, 20_000)
    np.testing.assert_allclose(drawn, 0.25 * np.random.default_rng(0).standard_normal((20_000, 7)))


def test_no_disturbance_changes_nothing():
    assert not steps(Disturbance(), 7, 50).any()


def test_a_push_is_constant_and_moves_the_hands_alone():
    drawn = steps(Disturbance(pushes=0.03), 14, 20_000)
    pushed = drawn.any(axis=1)
    assert not drawn[:, [3, 4, 5, 6, 10, 11, 12, 13]].any()
    begins = np.flatnonzero(pushed & ~np.roll(pushed, 1))
    starts = [start for start in begins if 0 < start < len(drawn) - PUSH_STEPS]
    assert all((drawn[start : start + PUSH_STEPS] == drawn[start]).all() for start in starts)
    assert drawn[pushed][:, :3].std() == pytest.approx(PUSH_SIZE, rel=0.1)
    # One begins with this probability in a step that is not pushed already.
    assert pushed.sum() / PUSH_STEPS / (~pushed).sum() == pytest.approx(0.03, rel=0.15)


def test_every_number_of_a_planar_task_is_a_displacement():
    assert (steps(Disturbance(pushes=1.0), 2, 10) != 0).all()


def test_the_configuration_wins_over_the_task_and_names_other_demonstrations():
    quiet = DemosConfig(noise=0.0, pushes=0.0)
    pushed = DemosConfig(noise=0.0, pushes=0.1)
    assert demonstration_disturbance(LIFT, DemosConfig()) == Disturbance(LIFT.demo_noise, LIFT.demo_pushes)
    assert demonstration_disturbance(LIFT, pushed) == Disturbance(0.0, 0.1)
    assert demonstrations_path(LIFT, quiet) != demonstrations_path(LIFT, pushed)
    with pytest.raises(ValueError, match=r"demos\.pushes must be a probability, or null for the task's, got 2"):
        DemosConfig(pushes=2)
