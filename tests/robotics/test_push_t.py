"""PushT: the observation, the resets and the rewards, against the published human demonstrations where they lie."""

from pathlib import Path

import numpy as np
import pytest
from task_files import task_of

from drifting.training.errors import ConfigError

pytest.importorskip("gym_pusht")

from domains.robotics.environments import make_environment
from domains.robotics.environments.push_t import KEYPOINTS

HUMAN = Path(__file__).parents[3] / "shared" / "data" / "pusht_low_dim.npz"
needs_human = pytest.mark.skipif(not HUMAN.exists(), reason=f"the human demonstrations are not at {HUMAN}")
ANGLES = np.linspace(0, 8 * np.pi, 40)
CIRCLING = 256 + np.stack([150 * np.cos(ANGLES), 150 * np.sin(3 * ANGLES)], axis=-1)  # all over the board


@pytest.fixture(scope="module")
def environment():
    return make_environment(task_of("push_t"))


def play(environment, actions, **reset):
    """States after every action."""
    environment.reset(**reset)
    states = []
    for action in actions:
        environment.step(action)
        states.append(environment.get_state())
    return np.array(states)


def test_spaces(environment):
    observation, info = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    assert set(observation) == {"keypoint", "agent_pos"}
    assert environment.action_space.contains(np.array([512, 0], np.float32))
    assert info == {"success": False, "stages": 0}


def test_keypoints_turn_and_move_with_the_block(environment):
    place = [100, 400, 200, 220]
    straight, _ = environment.reset(options={"state": np.array([*place, 0.0])})
    turned, _ = environment.reset(options={"state": np.array([*place, np.pi / 2])})
    body = KEYPOINTS[:, 0] + 1j * KEYPOINTS[:, 1]  # a quarter turn is a product with i
    for observation, points in ((straight, body), (turned, 1j * body)):
        seen = observation["keypoint"].reshape(9, 2)
        np.testing.assert_allclose(seen[:, 0] + 1j * seen[:, 1], points + 200 + 220j, atol=1e-4)
    np.testing.assert_allclose(turned["agent_pos"], [100, 400])


def test_a_seed_gives_the_initial_state_of_diffusion_policy(environment):
    environment.reset(seed=100_000)
    draw = np.random.RandomState(100_000)
    numbers = [draw.randint(50, 450), draw.randint(50, 450), draw.randint(100, 400), draw.randint(100, 400)]
    angle = draw.randn() * 2 * np.pi - np.pi
    state = environment.get_state()
    np.testing.assert_allclose(state[:2], numbers[:2])
    assert state[4] == pytest.approx(angle)
    # The angle was set last and turned the T about its centre of mass, which therefore stays.
    center = np.array(environment._simulator.block.center_of_gravity)
    cos, sin = np.cos(angle), np.sin(angle)
    expected = np.array(numbers[2:]) + center - np.array([[cos, -sin], [sin, cos]]) @ center
    np.testing.assert_allclose(state[2:4], expected, atol=1e-6)


def test_the_same_seed_is_the_same_episode(environment):
    first = play(environment, CIRCLING, seed=7)
    play(environment, CIRCLING[::-1], seed=8)
    again = play(make_environment(task_of("push_t")), CIRCLING, seed=7)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, play(environment, CIRCLING, seed=8))


def test_a_stored_state_continues_where_it_was_taken(environment):
    across = np.column_stack([np.linspace(100, 450, 40), np.full(40, 270)])
    whole = play(environment, across, options={"state": np.array([100, 256, 256, 256, 0.3])})
    assert np.abs(whole[20:, 2:4] - whole[19, 2:4]).max() > 50  # the T is being pushed
    assert np.abs(whole[19, 5:7]).max() > 10  # the pusher is moving
    rest = play(environment, across[20:], options={"state": whole[19]})
    np.testing.assert_allclose(rest, whole[20:], atol=1e-6)
    stopped = play(environment, across[20:], options={"state": whole[19, :5]})
    assert np.abs(stopped - whole[20:]).max() > 0.1


def test_reward_is_the_coverage_of_the_target(environment):
    environment.reset(options={"state": np.array([50, 50, 256, 256, np.pi / 4])})  # on the target
    _, reward, terminated, truncated, info = environment.step(np.array([50, 50]))
    assert reward == 1.0
    assert terminated
    assert not truncated
    assert info == {"success": True, "stages": 1}
    environment.reset(options={"state": np.array([50, 450, 420, 100, np.pi / 4])})
    _, reward, terminated, _, info = environment.step(np.array([50, 450]))
    assert reward == 0.0
    assert not terminated
    assert info == {"success": False, "stages": 0}


def test_an_episode_ends_at_the_step_limit():
    environment = make_environment(task_of("push_t", max_steps=3))
    environment.reset(seed=0)
    ends = [environment.step(np.array([50, 50]))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_images_and_pictures():
    task = task_of("push_t", observations={"agent_pos": 2}, images={"image": 96})
    environment = make_environment(task, render_size=128)
    observation, _ = environment.reset(seed=1)
    assert list(observation) == ["agent_pos", "image"]
    assert environment.observation_space.contains(observation)
    assert observation["image"].std() > 10
    moved, *_ = environment.step(np.array([400, 100]))
    assert (moved["image"] != observation["image"]).any()
    assert environment.render().shape == (128, 128, 3)
    with pytest.raises(ConfigError, match="at least 96 pixels wide, got 64"):
        make_environment(task, render_size=64)


@pytest.mark.parametrize(
    ("action", "words"),
    [([1.0, 2.0, 3.0], r"action must have shape \(2,\)"), ([np.nan, 1.0], "action must be finite")],
)
def test_wrong_actions(environment, action, words):
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        environment.step(np.array(action))


def test_wrong_states_and_observations(environment):
    with pytest.raises(ValueError, match="one row of 5 or 10 numbers, got shape \\(4,\\)"):
        environment.reset(options={"state": np.zeros(4)})
    with pytest.raises(ConfigError, match=r"task\.observations\.object"):
        make_environment(task_of("push_t", observations={"object": 3}))
    with pytest.raises(ConfigError, match=r"task\.observations\.keypoint must be one of \{keypoint: 18"):
        make_environment(task_of("push_t", observations={"keypoint": 16}))
    with pytest.raises(ConfigError, match=r"task\.images\.wrist"):
        make_environment(task_of("push_t", images={"wrist": 96}))


@needs_human
def test_keypoints_are_those_of_the_human_demonstrations(environment):
    data = np.load(HUMAN)
    picked = np.random.default_rng(0).permutation(len(data["state"]))[:1000]
    state, recorded = data["state"][picked].astype(float), data["keypoint"][picked].reshape(-1, 18)
    cos, sin = np.cos(state[:, 4]), np.sin(state[:, 4])
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    errors = np.abs((KEYPOINTS @ turn + state[:, None, 2:4]).reshape(-1, 18) - recorded).max(axis=1)
    assert np.median(errors) < 1e-3
    assert np.quantile(errors, 0.99) < 0.1  # in some first frames state and keypoints are of different instants
    seen, _ = environment.reset(options={"state": state[0]})
    np.testing.assert_allclose(seen["keypoint"], recorded[0], atol=1e-2)


@needs_human
@pytest.mark.parametrize("number", [0, 17, 101, 205])
def test_recorded_actions_lead_where_the_human_went(environment, number):
    data = np.load(HUMAN)
    ends = data["episode_ends"]
    begin, end = (0 if number == 0 else ends[number - 1]), ends[number]
    states, actions = data["state"][begin:end].astype(float), data["action"][begin:end].astype(float)
    played = play(environment, actions[:-1], options={"state": states[0]})
    np.testing.assert_allclose(played[:, :4], states[1:, :4], atol=1e-3)


@needs_human
def test_images_are_those_of_the_human_demonstrations():
    zarr = pytest.importorskip("zarr")
    store = HUMAN.parent / "pusht" / "pusht_cchi_v7_replay.zarr"
    if not store.exists():
        pytest.skip(f"the images of the human demonstrations are not at {store}")
    data = zarr.open_group(store=str(store), mode="r")["data"]
    environment = make_environment(task_of("push_t", images={"image": 96}))
    for index in (0, 200):
        state, recorded = np.asarray(data["state"][index], float), np.asarray(data["img"][index])
        seen, _ = environment.reset(options={"state": state})
        assert np.abs(seen["image"] - recorded).mean() < 0.1
