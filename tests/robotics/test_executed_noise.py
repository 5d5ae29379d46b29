from itertools import islice

import numpy as np
import pytest

from domains.robotics.demonstrations.noise import executed_noise


def noise(seed, count, **settings):
    return np.array(list(islice(executed_noise(seed, 3, **settings), count)))


def test_white_noise_is_that_of_the_episode_and_has_its_deviation():
    one = noise(5, 20000, std=0.1)
    np.testing.assert_array_equal(one, noise(5, 20000, std=0.1))
    assert not np.array_equal(one, noise(6, 20000, std=0.1))
    assert one.std(0) == pytest.approx(0.1, rel=0.02)
    assert np.abs(np.mean(one[1:] * one[:-1], axis=0)).max() < 3e-4


def test_lasting_noise_forgets_itself_exponentially():
    one = noise(0, 100_000, std=0.1, steps=10)
    variance = np.mean(one**2)
    for lag in (1, 5, 20):
        assert np.mean(one[lag:] * one[:-lag]) / variance == pytest.approx(np.exp(-lag / 10), abs=0.04)


def test_lasting_noise_has_a_strength_of_its_own_in_every_episode():
    strengths = np.array([noise(seed, 4000, std=0.1, steps=2).std() for seed in range(200)])
    assert strengths.min() < 0.01
    assert 0.19 < strengths.max() < 0.21
    assert strengths.mean() == pytest.approx(0.1, rel=0.1)


def test_lasting_noise_is_as_strong_at_the_first_step_as_later():
    first = np.array([noise(seed, 1, std=0.1, steps=50)[0] for seed in range(3000)])
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.1 * np.sqrt(4 / 3), rel=0.05)
