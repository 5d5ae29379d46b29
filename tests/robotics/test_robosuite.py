"""The environment of robosuite's tasks: observations, seeds, states, kinds of action, pictures, files' dialects."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from task_files import task_of

pytest.importorskip("robosuite")

from domains.robotics.environments import make_environment
from domains.robotics.environments.env_args import env_args_of, flat_env_args
from domains.robotics.environments.requirements import choose_gl
from domains.robotics.environments.robosuite_tasks import RobosuiteEnvironment
from drifting.training.errors import ConfigError

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7))
HUMAN = Path(__file__).parents[3] / "shared" / "data" / "robosuite141_lift_human.hdf5"


@pytest.fixture(scope="module")
def environment():
    made = make_environment(task_of("lift"))
    yield made
    made.close()


@pytest.fixture
def pictures():
    try:
        choose_gl(pictures=True)
    except ConfigError as error:
        pytest.skip(str(error))


def play(environment, actions, **reset):
    """States after each action, [T, S]."""
    environment.reset(**reset)
    return np.array([(environment.step(action), environment.get_state())[1] for action in actions])


def test_observations_are_robomimics(environment):
    observation, info = environment.reset(seed=0)
    assert list(observation) == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert environment.observation_space.contains(observation)
    assert info == {"success": False, "stages": 0}
    # `object` is the cube's position, its quaternion (x, y, z, w), and the way from it to the hand.
    cube = environment.simulator.sim.data.body_xpos[environment.simulator.cube_body_id]
    np.testing.assert_allclose(observation["object"][:3], cube, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(observation["object"][3:7]), 1, atol=1e-6)
    np.testing.assert_allclose(
        np.abs(observation["object"][7:]), np.abs(cube - observation["robot0_eef_pos"]), atol=1e-6
    )


def test_a_seed_is_an_episode_whatever_came_before(environment):
    first = play(environment, ACTIONS, seed=3)
    other = play(environment, ACTIONS, seed=4)
    np.testing.assert_array_equal(play(environment, ACTIONS, seed=3), first)
    assert not np.array_equal(first[0], other[0])
    environment.reset(seed=5)
    unseeded = environment.reset()[0]["object"]
    assert not np.array_equal(environment.reset()[0]["object"], unseeded)


def test_a_state_is_restored_and_goes_on_exactly(environment):
    environment.reset(seed=3)
    start, model = environment.get_state(), environment.get_model()
    expected = play(environment, ACTIONS, seed=3)
    environment.reset(seed=3, options={"state": expected[5]})
    np.testing.assert_array_equal(environment.get_state(), expected[5])
    np.testing.assert_array_equal(play(environment, ACTIONS, seed=3, options={"state": start}), expected)
    # Another episode has a cube of another size, unless the model is given too; its text is rounded.
    with_model = play(environment, ACTIONS, seed=4, options={"state": start, "model": model})
    np.testing.assert_allclose(with_model, expected, atol=1e-4)


def test_the_restored_observation_is_of_the_state(environment):
    environment.reset(seed=3)
    for action in ACTIONS:
        environment.step(action)
    state = environment.get_state()
    observation, _ = environment.reset(seed=3, options={"state": state})
    cube = 1 + environment.simulator.sim.model.nq - 7  # the free cube's pose ends the positions
    np.testing.assert_allclose(observation["object"][:3], state[cube : cube + 3], atol=1e-6)


def test_success_terminates_with_reward_and_stage(environment):
    _, info = environment.reset(seed=0)
    state = environment.get_state()
    height = 1 + environment.simulator.sim.model.nq - 7 + 2
    state[height] += 0.2
    observation, info = environment.reset(seed=0, options={"state": state})
    assert info == {"success": True, "stages": 1}
    _, reward, terminated, truncated, info = environment.step(np.zeros(7))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True, "stages": 1})
    assert observation["object"][2] > 0.95


def test_episodes_are_truncated():
    environment = make_environment(task_of("lift", max_steps=2))
    environment.reset(seed=0)
    assert [environment.step(np.zeros(7))[3] for _ in range(2)] == [False, True]
    environment.close()
    environment.close()


@pytest.mark.parametrize(
    ("action", "said"), [(np.zeros(6), r"shape \(7,\), got \(6,\)"), (np.full(7, np.nan), "must be finite")]
)
def test_a_wrong_action_is_refused(environment, action, said):
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        environment.step(action)


def test_a_wrong_state_is_refused(environment):
    with pytest.raises(ValueError, match=r'options\["state"\] must be one row of 32 numbers'):
        environment.reset(seed=0, options={"state": np.zeros(31)})


def test_an_observation_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"task\.observations\.objects"):
        make_environment(task_of("lift", observations={"objects": 10}))
    with pytest.raises(ConfigError, match=r"task\.observations\.object must be one of .*object: 10"):
        make_environment(task_of("lift", observations={"object": 14}))


def test_absolute_actions_do_what_their_displacements_do(environment):
    """Poses computed on the way of the displacements, executed in an environment of poses, lead the same way."""
    expected = play(environment, ACTIONS, seed=3)
    environment.reset(seed=3)
    poses, seen = [], []
    for action in ACTIONS:
        poses.append(environment.absolute_action(action))
        environment.step(action)
        seen.append(environment.get_state())
    np.testing.assert_array_equal(np.array(seen), expected)  # asking for the pose disturbs nothing
    absolute = make_environment(task_of("lift", absolute_actions=True))
    np.testing.assert_allclose(play(absolute, poses, seed=3), expected, atol=1e-5)
    with pytest.raises(ValueError, match="poses already"):
        absolute.absolute_action(ACTIONS[0])
    assert absolute.action_space.high[3:] == pytest.approx([np.pi] * 3 + [1])
    absolute.close()


def test_the_flat_dialect_simulates_the_same(environment):
    given = json.dumps(flat_env_args(env_args_of(task_of("lift"), version="1.5.2")))
    flat = RobosuiteEnvironment(task_of("lift"), env_args=json.loads(given))
    assert flat.simulator.lite_physics is False  # as 1.4 simulated
    np.testing.assert_allclose(play(flat, ACTIONS, seed=3), play(environment, ACTIONS, seed=3), atol=1e-5)
    flat.close()


def test_robomimic_builds_the_environment_from_its_description(environment, monkeypatch):
    pytest.importorskip("robomimic")
    stub = types.ModuleType("mujoco_py")  # robomimic 0.3.0 imports it for the class of one exception
    stub.builder = types.SimpleNamespace(MujocoException=RuntimeError)
    monkeypatch.setitem(sys.modules, "mujoco_py", stub)
    import robomimic.utils.env_utils as env_utils
    import robomimic.utils.obs_utils as obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(environment.task.observations)}})
    theirs = env_utils.create_env_from_metadata(environment.env_args, render=False, render_offscreen=False)
    observation, _ = environment.reset(seed=3)
    seen = theirs.reset_to({"states": environment.get_state(), "model": environment.get_model()})
    for key in environment.task.observations:
        np.testing.assert_allclose(seen[key], observation[key], atol=1e-5, err_msg=key)
    # It leaves the posture that the controller leans to as it was, hence only about the same motion.
    for action in ACTIONS[:3]:
        observation = environment.step(action)[0]
        seen = theirs.step(action)[0]
    np.testing.assert_allclose(seen["robot0_eef_pos"], observation["robot0_eef_pos"], atol=0.01)


@pytest.mark.usefixtures("pictures")
def test_images_are_upright_and_of_the_camera():
    """The red cube is where the camera's geometry puts it, in the observation and in the picture."""
    side = 64
    environment = make_environment(task_of("lift", images={"agentview_image": side}), render_size=96)
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    sim = environment.simulator.sim
    camera = sim.model.camera_name2id("agentview")
    cube = sim.data.body_xpos[environment.simulator.cube_body_id]
    seen = sim.data.cam_xmat[camera].reshape(3, 3).T @ (cube - sim.data.cam_xpos[camera])  # x right, y up, -z ahead
    scale = 0.5 / np.tan(np.deg2rad(sim.model.cam_fovy[camera]) / 2) / -seen[2]
    column, row = 0.5 + seen[0] * scale, 0.5 - seen[1] * scale
    assert abs(row - 0.5) > 0.03  # else the test could not tell
    for image in (observation["agentview_image"], environment.render()):
        red, green, _ = image[int(row * len(image)), int(column * len(image))].astype(int)
        assert red > 2 * green
        mirrored, other, _ = image[-1 - int(row * len(image)), int(column * len(image))].astype(int)
        assert mirrored < 2 * other
    environment.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["can", "square", "tool_hang", "transport"])
def test_every_task_has_the_observations_of_its_file(name):
    environment = make_environment(task_of(name))
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    assert environment.action_space.shape == (task_of(name).action_dim,)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (5, *environment.action_space.shape))
    expected = play(environment, actions, seed=1)
    environment.reset(seed=1)
    restored = play(environment, actions, seed=1, options={"state": environment.get_state()})
    np.testing.assert_array_equal(restored, expected)
    environment.close()


@pytest.mark.slow
@pytest.mark.parametrize("demo", [1, 2, 3])
def test_human_demonstrations_play_back_to_success(environment, demo):
    if not HUMAN.exists():
        pytest.skip(f"{HUMAN} is not there")
    h5py = pytest.importorskip("h5py")
    with h5py.File(HUMAN) as file:
        names = sorted(file["data"])
        states = file["data"][names[demo - 1]]["states"][:]
    successes = [environment.reset(seed=0, options={"state": state})[1]["success"] for state in states[[0, -2, -1]]]
    assert successes[0] is False
    assert successes[-1] is True


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_nothing_is_said_from_import_to_exit():
    """Neither robosuite's warnings nor OpenGL's complaints at the interpreter's end, with an environment left open."""
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    program = (
        "from task_files import task_of; from domains.robotics.environments import make_environment; "
        "environment = make_environment(task_of('lift'), render_size=32); environment.reset(seed=0); "
        "environment.step(environment.action_space.sample()); print(environment.render().shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{root}"},
    )
    assert (done.stdout.strip(), done.stderr.strip()) == ("(32, 32, 3)", "")
