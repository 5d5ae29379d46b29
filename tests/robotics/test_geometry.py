import numpy as np
import pytest
import torch
from small_policies import small_config, small_task
from task_files import task_of

from domains.robotics.geometry import PoseGeometry
from domains.robotics.observations import ObservationEncoder
from domains.robotics.rotations import axis_angle_to_quaternion, quaternion_to_matrix
from domains.robotics.task import PoseConfig
from drifting.training.errors import ConfigError

POSES = {
    "hook": PoseConfig(position="hook", quaternion="hook", quaternion_at=3),
    "ring": PoseConfig(position="ring", position_at=2, quaternion="turn"),
}


def two_poses(**poses):
    return small_task(observations={"hook": 7, "ring": 5, "turn": 4}, poses=POSES | poses)


def seen(count=20):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(count, 2, *shape, generator=generator)  # noqa: E731
    turns = [axis_angle_to_quaternion(draw(3)) for _ in range(2)]
    return {"hook": torch.cat([draw(3), turns[0]], dim=-1), "ring": draw(5), "turn": turns[1]}


def test_the_way_between_points_on_two_bodies_is_linear_in_it():
    """p_2 - p_1 + R_2 o_2 - R_1 o_1 for any points o in the bodies' own frames, by least squares to rounding."""
    observed = seen(200)
    geometry = PoseGeometry(two_poses())(observed).flatten(0, 1).double()
    points = torch.tensor([0.1, -0.4, 0.3]), torch.tensor([-0.2, 0.05, 0.6])
    places = []
    for pose, point in zip(("hook", "ring"), points, strict=True):
        position, quaternion = {
            "hook": (observed["hook"][..., :3], observed["hook"][..., 3:]),
            "ring": (observed["ring"][..., 2:], observed["turn"]),
        }[pose]
        places.append(position + quaternion_to_matrix(quaternion) @ point)
    way = (places[1] - places[0]).flatten(0, 1).double()
    fit = torch.linalg.lstsq(geometry, way).solution
    assert float((geometry @ fit - way).abs().max()) < 1e-5


def test_a_quaternion_and_its_negative_look_the_same():
    one = seen()
    other = one | {"turn": -one["turn"]}
    geometry = PoseGeometry(two_poses())
    torch.testing.assert_close(geometry(one), geometry(other))


def test_the_network_sees_it_beside_the_observations_and_matrices_keep_their_scale():
    observed, task = seen(50), two_poses()
    encoder = ObservationEncoder(task, small_config(geometry=True, octaves=2))
    encoder.fit(observed)
    assert encoder.dim == 2 * 3 * (16 + 18 + 3)
    low = encoder(observed)[:, : 2 * (16 + 18 + 3)].unflatten(1, (2, -1))
    geometry = PoseGeometry(task)(observed)
    # The nearest observations are found by what is observed: geometry would count poses twice.
    torch.testing.assert_close(encoder.low_dimensional(observed), low[..., :16].flatten(1))
    torch.testing.assert_close(low[..., 16:34], geometry[..., :18])
    torch.testing.assert_close(low[..., 34:].amax((0, 1)), torch.ones(3))


@pytest.mark.parametrize(
    "pose, message",
    [
        (PoseConfig(position="eye", quaternion="turn"), r"the position at 0 to 2 of 'eye'"),
        (PoseConfig(position="ring", position_at=3, quaternion="turn"), r"the position at 3 to 5 of 'ring'"),
        (PoseConfig(position="ring", quaternion="ring", quaternion_at=-1), r"the quaternion at -1 to 2 of 'ring'"),
        (PoseConfig(position="ring", position_at=4, size=2), r"the position at 4 to 5 of 'ring'"),
    ],
)
def test_poses_that_are_not_observed_are_refused(pose, message):
    with pytest.raises(ConfigError, match=rf"task\.poses\.lamp must be in one of task\.observations.*{message}"):
        PoseGeometry(two_poses(lamp=pose))


def test_places_on_a_table_have_offsets_alone():
    observed = seen()
    places = {name: PoseConfig(position="ring", position_at=at, size=2) for name, at in (("a", 0), ("b", 3), ("c", 1))}
    geometry = PoseGeometry(small_task(observations={"ring": 5}, poses=places))
    a, b, c = (observed["ring"][..., at : at + 2] for at in (0, 3, 1))
    assert (geometry.rotation_dim, geometry.dim) == (0, 6)
    torch.testing.assert_close(geometry(observed), torch.cat([b - a, c - a, c - b], dim=-1))


def test_places_of_two_and_of_three_dimensions_are_refused():
    with pytest.raises(ConfigError, match=r"task\.poses must all have one size, 2 or 3, got \[2, 3\]"):
        PoseGeometry(two_poses(lamp=PoseConfig(position="ring", size=2)))
    with pytest.raises(ValueError, match=r"size must be 2 on a plane or 3, got 4"):
        PoseConfig(position="ring", size=4)


def test_one_place_alone_is_refused():
    with pytest.raises(ConfigError, match=r"must name a second place or a quaternion: of \['ring'\] nothing follows"):
        PoseGeometry(small_task(poses={"ring": PoseConfig(position="object")}))


def test_a_task_without_poses_is_refused():
    with pytest.raises(ConfigError, match=r"policy\.geometry=true needs task\.poses"):
        ObservationEncoder(small_task(), small_config(geometry=True))


def test_the_poses_of_tool_hang_are_those_of_points_on_its_bodies():
    pytest.importorskip("robosuite", reason="needs the extra robotics")
    from domains.robotics.environments import make_environment

    task = task_of("tool_hang")
    environment = make_environment(task)
    points = []
    for seed in (1, 2):
        observation, _ = environment.reset(seed=seed)
        sim = environment.simulator.sim
        for name, body in {"base": "stand_root", "frame": "frame_root", "tool": "tool_root"}.items():
            pose, at = task.poses[name], sim.model.body_name2id(body)
            matrix = sim.data.body_xmat[at].reshape(3, 3)
            quaternion = torch.from_numpy(observation[pose.quaternion][pose.quaternion_at :][:4])
            np.testing.assert_allclose(quaternion_to_matrix(quaternion), matrix, atol=1e-5)
            position = observation[pose.position][pose.position_at :][:3]
            points.append(matrix.T @ (position - sim.data.body_xpos[at]))
    np.testing.assert_allclose(points[:3], points[3:], atol=1e-5)  # where it is on the body, in either episode
    hand = task.poses["hand"]
    np.testing.assert_array_equal(observation[hand.position][:3], observation["robot0_eef_pos"])
    environment.close()


@pytest.mark.parametrize("name", ["square", "block_push"])
def test_the_poses_of_a_task_are_those_of_the_simulator(name):
    pytest.importorskip("robosuite", reason="needs the extra robotics")
    from domains.robotics.environments import make_environment

    task = task_of(name)
    environment = make_environment(task)
    observation, _ = environment.reset(seed=1)
    if name == "square":
        sim = environment.simulator.sim
        true = {"nut": sim.data.body_xpos[sim.model.body_name2id("SquareNut_main")]}
        quaternion = torch.from_numpy(observation["object"][task.poses["nut"].quaternion_at :][:4])
        matrix = sim.data.body_xmat[sim.model.body_name2id("SquareNut_main")].reshape(3, 3)
        np.testing.assert_allclose(quaternion_to_matrix(quaternion), matrix, atol=1e-5)
    else:
        scene = environment.scene
        places = (*scene.blocks[:, :2], scene.effector, *scene.target_poses[:, :2])
        true = dict(zip(("block", "block2", "stick", "target", "target2"), places, strict=True))
        assert task.poses.keys() == true.keys()
    for each, place in true.items():
        pose = task.poses[each]
        np.testing.assert_allclose(observation[pose.position][pose.position_at :][: pose.size], place, atol=1e-5)
    environment.close()
