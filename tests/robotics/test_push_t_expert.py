"""The scripted pusher of PushT: its geometry, that it does not touch the T on the way, and that it solves the task."""

from itertools import pairwise

import numpy as np
import pytest
from task_files import task_of

pytest.importorskip("gym_pusht")

from domains.robotics.environments import make_environment
from domains.robotics.experts.push_t import Path, PushTExpert
from domains.robotics.experts.push_t_geometry import GOAL, PUSHER, Surroundings, contacts, keypoint_error, rotation

POSE = np.array([230.0, 250.0, 0.7])


def test_the_outline_is_the_simulator_s():
    environment = make_environment(task_of("push_t"))
    environment.reset(options={"state": np.array([50, 50, *POSE])})
    block = environment._simulator.block
    corners = [np.array(block.local_to_world(v)) for shape in block.shapes for v in shape.get_vertices()]
    surroundings = Surroundings(POSE)
    assert max(surroundings.distance(corner) for corner in corners) < 1e-3
    bar = max(block.shapes, key=lambda shape: np.ptp([vertex.x for vertex in shape.get_vertices()]))
    middle = np.mean([block.local_to_world(vertex) for vertex in bar.get_vertices()], axis=0)
    assert surroundings.distance(middle + rotation(POSE[2]) @ [0, -25]) == pytest.approx(10)  # bar: 30 pixels wide


def test_contacts_lie_on_the_outline_and_their_normals_point_away():
    surroundings = Surroundings(np.zeros(3))
    for point, normal in contacts():
        assert surroundings.distance(point) == pytest.approx(0, abs=1e-9)
        assert surroundings.distance(point + 10 * normal) == pytest.approx(10)
        assert surroundings.distance(point - normal) == 0


def test_the_error_is_zero_at_the_goal_and_the_displacement_beside_it():
    assert keypoint_error(GOAL) == pytest.approx(0, abs=1e-9)
    assert keypoint_error(GOAL + np.array([3, 4, 0])) == pytest.approx(5)
    assert keypoint_error(GOAL + np.array([0, 0, 0.2])) > 5


def test_ways_go_round_the_t():
    surroundings = Surroundings(POSE)
    turn = rotation(POSE[2])
    start, end = POSE[:2] + turn @ [0, -40], POSE[:2] + turn @ [0, 150]  # behind the bar, before the stem
    way = surroundings.way(start, end)
    assert len(way) > 2
    np.testing.assert_array_equal([way[0], way[-1]], [start, end])
    for begin, finish in pairwise(way):
        for share in np.linspace(0, 1, 20):
            assert surroundings.distance(begin + share * (finish - begin)) > PUSHER + 0.9
    assert surroundings.way(start, POSE[:2]) is None  # inside the T


def test_a_path_is_followed_to_its_end():
    path = Path([np.array([100.0, 100.0]), np.array([200.0, 100.0])], np.array([200.0, 160.0]), ahead=44.0)
    place, targets = np.array([100.0, 100.0]), []
    while (target := path.target(place)) is not None:
        targets.append(target)
        place = place + 0.4 * (target - place)
        assert min(abs(place[1] - 100), abs(place[0] - 200)) < 3  # the corner before the push is not cut
    assert np.linalg.norm(place - [200, 160]) < 3
    assert len(targets) < 40


@pytest.mark.parametrize("seed", [9, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 6, 100_000))])
def test_the_expert_solves_it(seed):
    environment = make_environment(task_of("push_t"))
    expert = PushTExpert(environment)
    environment.reset(seed=seed)
    expert.reset()
    for _ in range(300):
        _, reward, terminated, _, info = environment.step(expert.act())
        if terminated:
            break
    assert info["success"]
    assert reward == 1.0
