"""Kitchen: the adapter of FrankaKitchen-v1, its stages and its states."""

import numpy as np
import pytest
from task_files import task_of

pytest.importorskip("gymnasium_robotics")

from domains.robotics.environments import make_environment

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 9))
GOALS = {  # indices of MuJoCo's positions, and where the simulator wants them
    "microwave": ([22], [-0.75]),
    "slide cabinet": ([19], [0.37]),
    "light switch": ([17, 18], [-0.69, -0.05]),
    "top burner": ([15, 16], [-0.92, -0.01]),
    "bottom burner": ([11, 12], [-0.88, -0.01]),
}


@pytest.fixture(scope="module")
def environment():
    return make_environment(task_of("kitchen"))


def play(environment, actions, **reset):
    environment.reset(**reset)
    return np.array([environment.step(action)[0]["state"] for action in actions])


def test_spaces(environment):
    observation, info = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    assert observation["state"].shape == (59,)
    assert info == {"success": False, "stages": 0}


def test_the_same_seed_is_the_same_episode(environment):
    first = play(environment, ACTIONS, seed=3)
    other = play(environment, ACTIONS, seed=4)
    np.testing.assert_array_equal(first, play(environment, ACTIONS, seed=3))
    assert not np.array_equal(first, other)


def test_a_stored_state_is_restored_exactly(environment):
    environment.reset(seed=3)
    for action in ACTIONS[:10]:
        environment.step(action)
    state = environment.get_state()
    environment.reset(seed=9)
    first = play(environment, ACTIONS[10:], seed=5, options={"state": state})
    environment.reset(seed=5, options={"state": state})
    np.testing.assert_array_equal(environment.get_state(), state)
    np.testing.assert_array_equal(first, play(environment, ACTIONS[10:], seed=5, options={"state": state}))


def test_any_four_things_are_the_four_stages(environment):
    simulator = environment._simulator
    environment.reset(seed=0)
    rewards = []
    for number, (indices, places) in enumerate(GOALS.values(), start=1):
        simulator.data.qpos[indices] = places
        _, reward, terminated, _, info = environment.step(np.zeros(9))
        rewards.append(reward)
        assert info["stages"] == min(number, 4)
        assert terminated == info["success"] == (number >= 4)
    assert rewards == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_what_is_done_is_part_of_the_state(environment):
    environment.reset(seed=0)
    environment._simulator.data.qpos[22] = -0.75
    environment.step(np.zeros(9))
    state = environment.get_state()
    environment.reset(seed=1)
    _, info = environment.reset(options={"state": state})
    assert info["stages"] == 1
    assert environment.step(np.zeros(9))[1] == 0.25


def test_pictures_need_a_size(environment):
    environment.reset(seed=0)
    with pytest.raises(ValueError, match="render_size"):
        environment.render()
