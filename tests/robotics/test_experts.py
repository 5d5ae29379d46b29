"""Scripted experts of robosuite's tasks solve the simulator's own check, with and without executed noise."""

import numpy as np
import pytest
from task_files import task_of

from domains.robotics.demonstrations.noise import executed_noise
from domains.robotics.experts import EXPERTS, expert_for
from drifting.training.errors import ConfigError

pytest.importorskip("robosuite")

from domains.robotics.environments import make_environment
from domains.robotics.experts.servo import NEUTRAL, Pose, about, angle, distance, from_above, nearest, turned
from domains.robotics.experts.tool_hang import AROUND, INWARD, LIPS, THREADED, ToolHangExpert


def show(name, seeds, *, noisy):
    """Lengths of the successful episodes, with the task's executed noise or none; every label is checked."""
    task = task_of(name)
    environment = make_environment(task)
    expert = expert_for(name)(environment)
    lengths = []
    for seed in seeds:
        noise = executed_noise(seed, task.action_dim, std=noisy * task.demo_noise, steps=task.demo_noise_steps)
        environment.reset(seed=seed)
        expert.reset()
        terminated = truncated = False
        steps = 0
        while not (terminated or truncated):
            label = expert.act()
            assert label.shape == environment.action_space.shape
            assert np.abs(label).max() <= 1
            _, _, terminated, truncated, _ = environment.step(label + next(noise))
            steps += 1
        lengths += [steps] if terminated else []
    environment.close()
    return lengths


def test_lift_is_solved_despite_noise():
    assert len(show("lift", (0, 1), noisy=True)) == 2


def test_a_clean_lift_is_quick_and_the_same_each_time():
    first = show("lift", (0, 1), noisy=False)
    assert max(first) < 40
    assert show("lift", (0, 1), noisy=False) == first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["can", "square", "tool_hang"])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_longer_tasks_are_solved(name, noisy):
    assert len(show(name, (0, 1), noisy=noisy)) == 2


def test_what_carries_a_thing_acts_by_the_present_poses_alone():
    environment = make_environment(task_of("lift"))
    expert = expert_for("lift")(environment)
    environment.reset(seed=0)
    goal = expert.hand.raised(0.03)
    carry = lambda: expert.carry(lambda: expert.hand, goal, within=0.0, patience=40)  # noqa: E731
    begun, noise = carry(), executed_noise(0, 7, std=0.1, steps=5)
    for _ in range(30):
        action = next(begun)
        np.testing.assert_array_equal(action, next(carry()))
        environment.step(np.clip(action + next(noise), -1, 1))
    environment.close()


def test_the_end_of_a_plan_is_known_and_the_arm_rests():
    environment = make_environment(task_of("lift"))
    expert = expert_for("lift")(environment)
    with pytest.raises(RuntimeError, match="act before reset"):
        expert.act()
    environment.reset(seed=0)
    expert.reset()
    while not expert.done:
        environment.step(expert.act())
    assert environment.simulator._check_success()
    assert expert.act().tolist() == [0, 0, 0, 0, 0, 0, 1]
    environment.reset(seed=1)
    expert.reset()
    assert not expert.done
    environment.close()


def test_a_task_without_an_expert_names_those_that_have_one():
    with pytest.raises(
        ConfigError,
        match=r"no scripted expert for task=transport, only for lift.*demos\.source=human .*demos\.path=FILE",
    ):
        expert_for("transport")


@pytest.mark.parametrize("name", EXPERTS)
def test_every_named_expert_is_there(name):
    pytest.importorskip({"block_push": "pybullet", "push_t": "gym_pusht"}.get(name, "robosuite"))
    assert {"reset", "act"} <= set(dir(expert_for(name)))


def test_poses_compose_and_invert():
    pose = Pose(np.array([0.1, -0.2, 0.3]), about([1, 2, 3], 0.7))
    other = Pose(np.array([1.0, 0.0, -1.0]), about([0, 1, 0], -1.2))
    there_and_back = pose.inverse() @ pose @ other
    assert distance(there_and_back, other) < 1e-12
    assert angle(there_and_back, other) < 1e-7
    quarter = Pose(np.zeros(3), about([0, 0, 1], np.pi / 2))
    np.testing.assert_allclose((quarter @ Pose(np.array([1.0, 0, 0]), np.eye(3))).position, [0, 1, 0], atol=1e-12)


def test_a_hand_from_above_points_down_and_closes_along_what_was_asked():
    hand = from_above(np.array([3.0, 4.0, 1.0]))
    np.testing.assert_allclose(hand[:, 0], [0.6, 0.8, 0], atol=1e-12)
    np.testing.assert_allclose(hand[:, 2], [0, 0, -1], atol=1e-12)
    assert np.linalg.det(hand) == pytest.approx(1)
    turns = [about([0, 0, 1], radians) @ NEUTRAL for radians in (0.5, -0.2, 3.0)]
    assert turned(nearest(turns, NEUTRAL), NEUTRAL) == pytest.approx(0.2)


class PlacedTool(ToolHangExpert):
    """The expert of ToolHang in a scene of two points: the ring, and the hook's end at the origin."""

    prong, outward, ring = np.zeros(3), np.array([0.0, 1.0, 0.0]), Pose(np.zeros(3), np.eye(3))

    def __init__(self):
        pass


def test_the_ring_is_led_around_the_hook_without_a_jump():
    expert = PlacedTool()

    def goal(*ring):
        expert.ring = Pose(np.array(ring), np.eye(3))
        return expert.lowered_ring().position

    assert goal(0.03, 0.0, 0.05) == pytest.approx([0, 0, LIPS])  # far off: above it
    assert goal(0.0, 0.0, 0.05) == pytest.approx([0, 0, -AROUND])  # above it: down
    assert goal(0.0, -INWARD, -THREADED) == pytest.approx([0, -INWARD, -AROUND])  # around it: to where it slides on
    assert goal(0.03, 0.0, -THREADED)[2] == pytest.approx(LIPS)  # below, beside it: up again
    path = np.linspace([0.03, 0.0, 0.05], [0.0, 0.0, -AROUND], 2000)  # in steps of 0.035 mm
    steps = np.diff([goal(*ring) for ring in path], axis=0)
    assert np.linalg.norm(steps, axis=1).max() < 3e-4
