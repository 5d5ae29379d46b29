"""BlockPush: resets, stages and states, and that its expert solves it in every order."""

import numpy as np
import pytest
from task_files import task_of

pytest.importorskip("pybullet")

from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.sources import load_demonstrations
from domains.robotics.environments import make_environment
from domains.robotics.experts.block_push import BlockPushExpert

DISPLACED = task_of("block_push", absolute_actions=False)  # as experts act


@pytest.fixture(scope="module")
def environment():
    return make_environment(DISPLACED, render_size=64)


def with_blocks(environment, first, second):
    """Reset to a state with the blocks' centres moved there."""
    environment.reset(seed=0)
    state = environment.get_state()
    for start, place in ((25, first), (38, second)):  # behind the arm's 12 and the stick's 13 numbers
        state[start : start + 2] = place
        state[start + 3 : start + 7] = [0, 0, 0, 1]  # not turned
    return environment.reset(options={"state": state})[0]["state"]


def show(environment, seed, limit=350):
    """The expert's episode: states seen, actions, the last info."""
    expert = BlockPushExpert(environment)
    observation, info = environment.reset(seed=seed)
    expert.reset()
    seen, actions, ended = [observation["state"]], [], False
    while not ended and len(actions) < limit:
        actions.append(expert.act())
        observation, _, ended, _, info = environment.step(actions[-1])
        seen.append(observation["state"])
    return np.array(seen), np.array(actions), info


def test_what_is_drawn_at_a_reset(environment):
    observations = []
    for seed in range(100_000, 100_040):
        observation, info = environment.reset(seed=seed)
        assert environment.observation_space.contains(observation)
        assert info == {"success": False, "stages": 0}
        observations.append(observation["state"])
    states = np.array(observations)
    blocks, stick, targets = states[:, :6].reshape(-1, 2, 3), states[:, 6:10], states[:, 10:].reshape(-1, 2, 3)
    np.testing.assert_allclose(stick, np.tile([0.3, -0.4, 0.3, -0.4], (40, 1)), atol=1e-3)
    assert (np.abs(blocks[:, 0, 0] - blocks[:, 1, 0]) > 0.099).all()
    assert (np.abs(blocks[..., 0] - 0.4) < 0.101).all()
    assert (np.abs(blocks[..., 1] + 0.2) < 0.151).all()
    assert (np.abs(np.abs(targets[..., 0] - 0.4) - 0.12) < 0.006).all()
    assert len(np.unique(targets[:, 0, 0] > 0.4)) == 2  # either target may be on the left
    assert ((states[:, [2, 5, 12, 15]] >= 0) & (states[:, [2, 5, 12, 15]] < np.pi)).all()


def test_the_stick_goes_where_it_is_sent(environment):
    environment.reset(seed=1)
    for action in ([0.05, 0.0], [0.0, 0.03], [5.0, -5.0], [0.0, 0.0], [0.0, 0.0]):
        observation, *_ = environment.step(np.array(action))
    # 5 is cut to 0.1, and the workspace begins at y = -0.5.
    np.testing.assert_allclose(observation["state"][8:10], [0.45, -0.47], atol=1e-6)
    np.testing.assert_allclose(observation["state"][6:8], [0.45, -0.47], atol=5e-3)


def test_places_move_as_the_displacements_that_lead_there(environment):
    absolute = make_environment(task_of("block_push"))
    draw = np.random.default_rng(0)
    environment.reset(seed=3)
    absolute.reset(seed=3)
    for _ in range(20):
        action = draw.normal(size=2) * 0.06  # beyond 0.1 at times
        place = environment.absolute_action(action)
        expected, *_ = environment.step(action)
        found, *_ = absolute.step(place)
        np.testing.assert_allclose(found["state"], expected["state"], atol=1e-3)  # contacts enlarge rounding
    far = absolute.step(np.array([0.7, 0.5]))[0]["state"]
    np.testing.assert_allclose(far[8:10], np.minimum(found["state"][8:10] + 0.1, [0.7, 0.5]), atol=1e-6)
    with pytest.raises(ValueError, match="places already"):
        absolute.absolute_action(np.zeros(2))
    absolute.close()


def test_demonstrations_of_the_other_kind_of_action_are_refused(tmp_path):
    store = load_demonstrations(task_of("block_push"), DemosConfig(episodes=2, cache=str(tmp_path)), progress=False)
    # Labels are places: where the stick is sent to differs from them by the executed noise alone.
    sent = store.arrays["state"][1:, 8:10][: store.episode_ends[0] - 1]
    np.testing.assert_allclose(store.actions[: len(sent)], sent, atol=10 * 0.1 * DISPLACED.demo_noise)
    (path,) = tmp_path.glob("block_push-*.hdf5")
    with pytest.raises(DemonstrationError, match=r"absolute_actions=True, the task task\.absolute_actions=False"):
        load_demonstrations(DISPLACED, DemosConfig(source="human", path=str(path), cache=str(tmp_path)))


def test_a_pushed_block_moves_and_the_other_stays(environment):
    with_blocks(environment, [0.3, -0.3], [0.5, 0.0])
    for _ in range(12):
        observation, *_ = environment.step(np.array([0.0, 0.01]))
    state = observation["state"]
    # The stick's front, 0.01 ahead of its axis, is at the block's back, 0.02 behind its centre.
    np.testing.assert_allclose(state[:2], [0.3, -0.28 + 0.01 + 0.02], atol=3e-3)
    np.testing.assert_allclose(state[3:5], [0.5, 0.0], atol=2e-3)


def test_stages(environment):
    targets = environment.scene.target_poses
    far = np.array([0.4, -0.3])

    def stages_with(first, second):
        with_blocks(environment, first, second)
        targets = environment.scene.target_poses
        assert targets is not None
        _, reward, terminated, _, info = environment.step(np.zeros(2))
        return reward, terminated, info["stages"]

    environment.reset(seed=0)
    targets = environment.scene.target_poses[:, :2].copy()
    near = targets + np.array([[0.04, 0.0], [0.0, 0.03]])
    assert stages_with(far, far + 0.1) == (0.0, False, 0)
    assert stages_with(near[0], far) == (0.5, False, 1)
    assert stages_with(far, near[0]) == (0.5, False, 1)
    assert stages_with(targets[0] - 0.025, targets[0] + 0.025) == (0.5, False, 1)  # both in one target
    assert stages_with(targets[0] + [0.055, 0.0], far) == (0.0, False, 0)
    assert stages_with(near[0], near[1]) == (1.0, True, 2)
    assert stages_with(near[1], near[0]) == (1.0, True, 2)


def test_a_stage_stays_done(environment):
    environment.reset(seed=0)
    target = environment.scene.target_poses[0, :2].copy()
    with_blocks(environment, target, [0.4, -0.3])
    environment.step(np.zeros(2))
    state = environment.get_state()
    state[25:27] = [0.4, -0.2]
    _, info = environment.reset(options={"state": state})
    assert info["stages"] == 1
    assert environment.step(np.zeros(2))[1] == 0.5


def test_the_same_seed_is_the_same_episode(environment):
    seen, actions, _ = show(environment, seed=5, limit=60)
    show(environment, seed=6, limit=20)
    other = make_environment(DISPLACED)
    again, repeated, _ = show(other, seed=5, limit=60)
    np.testing.assert_array_equal(actions, repeated)
    np.testing.assert_array_equal(seen, again)
    assert np.abs(seen[-1, :6] - seen[0, :6]).max() > 0.02  # a block was pushed
    other.close()


def test_a_stored_state_continues_where_it_was_taken(environment):
    expert = BlockPushExpert(environment)
    environment.reset(seed=5)
    expert.reset()
    for _ in range(25):
        environment.step(expert.act())
    state = environment.get_state()
    actions, whole = [], []
    for _ in range(10):
        actions.append(expert.act())
        whole.append(environment.step(actions[-1])[0]["state"])
    observation, info = environment.reset(options={"state": state})
    np.testing.assert_allclose(environment.get_state(), state, rtol=0, atol=1e-14)
    assert info == {"success": False, "stages": int(state[-1])}
    rest = [environment.step(action)[0]["state"] for action in actions]
    assert np.abs(whole[-1][:6] - observation["state"][:6]).max() > 0.02
    np.testing.assert_array_equal(rest, whole)  # no contact is remembered outside the state


def test_the_expert_solves_it_in_every_order(environment):
    modes = set()
    for seed in range(12):
        seen, actions, info = show(environment, seed)
        assert info == {"success": True, "stages": 2}, f"seed {seed}"
        assert np.abs(actions).max() < 0.1  # within the action space: labels are not cut
        moved = np.linalg.norm(seen[:, [[0, 1], [3, 4]]] - seen[0, [[0, 1], [3, 4]]], axis=-1) > 0.01  # [T, block]
        first = int(np.argmin(moved.argmax(axis=0)))
        targets = seen[-1, [[10, 11], [13, 14]]]
        modes.add((first, int(np.linalg.norm(targets - seen[-1, 3 * first : 3 * first + 2], axis=-1).argmin())))
    assert modes == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_noise_does_not_lead_the_expert_astray(environment):
    expert, draw = BlockPushExpert(environment), np.random.default_rng(0)
    task = task_of("block_push")
    assert task.demo_noise > 0
    for seed in (0, 1):
        environment.reset(seed=seed)
        expert.reset()
        for _ in range(350):
            _, _, ended, _, _ = environment.step(expert.act() + 0.1 * task.demo_noise * draw.standard_normal(2))
            if ended:
                break
        assert ended


def test_pictures_show_the_blocks(environment):
    environment.reset(seed=0)
    before = environment.render()
    assert before.shape == (64, 64, 3)
    assert before.dtype == np.uint8
    with_blocks(environment, [0.4, 0.0], [0.45, 0.1])
    assert (environment.render() != before).any()
    with pytest.raises(ValueError, match="render_size"):
        make_environment(DISPLACED).render()
