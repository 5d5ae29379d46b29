import json

import pytest
from task_files import task_of

from domains.robotics.environments.env_args import (
    absolute_actions,
    arm_controller,
    check_env_args,
    env_args_of,
    flat_env_args,
    read_env_args,
)
from drifting.training.errors import ConfigError

# As robomimic's files of robosuite 1.4 describe themselves.
FLAT = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"],
        "controller_configs": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150,
            "damping": 1,
            "control_delta": True,
        },
        "control_freq": 20,
        "mount_types": "default",
    },
}


def test_a_description_of_our_own_reads_back():
    given = env_args_of(task_of("lift"), version="1.5.2")
    assert read_env_args(json.dumps(given)) == given
    assert check_env_args(task_of("lift"), given) == given
    assert not absolute_actions(given)


def test_the_flat_dialect_becomes_composite_and_back():
    composite = read_env_args(json.dumps(FLAT))
    arm = composite["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    assert (arm["type"], arm["input_type"], arm["input_ref_frame"]) == ("OSC_POSE", "delta", "world")
    assert arm["kp"] == 150
    assert "control_delta" not in arm
    assert composite["env_kwargs"]["base_types"] == "default"
    assert composite["env_kwargs"]["lite_physics"] is False
    assert flat_env_args(composite) == FLAT


def test_reading_leaves_what_was_given_alone():
    before = json.dumps(FLAT)
    read_env_args(FLAT)
    flat_env_args(env_args_of(task_of("lift"), version="1.5.2"))
    assert json.dumps(FLAT) == before


@pytest.mark.parametrize("delta", [True, False])
def test_absolute_actions_are_seen_in_both_dialects(delta):
    flat = json.loads(json.dumps(FLAT))
    flat["env_kwargs"]["controller_configs"]["control_delta"] = delta
    assert absolute_actions(flat) is not delta
    assert absolute_actions(read_env_args(flat)) is not delta
    assert flat_env_args(read_env_args(flat))["env_kwargs"]["controller_configs"]["control_delta"] is delta


def test_both_nestings_of_the_composite_dialect():
    given = env_args_of(task_of("lift", absolute_actions=True), version="1.5.2")
    parts = given["env_kwargs"]["controller_configs"]["body_parts"]
    nested = json.loads(json.dumps(given))
    nested["env_kwargs"]["controller_configs"]["body_parts"] = {"arms": parts}
    assert arm_controller(nested) == arm_controller(given)
    assert absolute_actions(nested)


def test_two_robots_share_a_controller_list():
    given = env_args_of(task_of("transport"), version="1.5.2")
    given["env_kwargs"]["controller_configs"] = [given["env_kwargs"]["controller_configs"]] * 2
    check_env_args(task_of("transport"), given)
    given["env_kwargs"]["controller_configs"] = [FLAT["env_kwargs"]["controller_configs"], {"type": "IK_POSE"}]
    with pytest.raises(ConfigError, match="the same for all robots"):
        read_env_args(given)


@pytest.mark.parametrize(
    ("task", "named"),
    [
        (task_of("can"), "task.environment=Lift, the task task.environment=PickPlaceCan"),
        (task_of("lift", absolute_actions=True), "task.absolute_actions=False"),
        (task_of("lift", robots=2), "task.robots=1"),
        (task_of("lift", control_hz=10), "task.control_hz=20"),
    ],
)
def test_a_file_of_another_task_is_refused(task, named):
    with pytest.raises(ConfigError, match=rf"demo\.hdf5: the file has .*{named}"):
        check_env_args(task, FLAT, source="demo.hdf5")


# As the files of robosuite 1.5 that robomimic publishes describe their arms.
PUBLISHED = FLAT["env_kwargs"]["controller_configs"] | {
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "uncouple_pos_ori": True,
    "input_ref_frame": "world",
    "gripper": {"type": "GRIP"},
}


def described(name, arm, **changes):
    """Of a file of this task whose arms have the controller `arm` with some `changes`; None takes one away."""
    given = env_args_of(task_of(name), version="1.5.1")
    part = {key: value for key, value in (arm | changes).items() if value is not None}
    given["env_kwargs"]["controller_configs"] = {"type": "BASIC", "body_parts": {"right": part}}
    return given


def test_published_files_and_other_spellings_of_the_same_motion_pass():
    for name in ("lift", "can", "square", "tool_hang", "transport"):
        check_env_args(task_of(name), described(name, PUBLISHED))
    check_env_args(task_of("lift"), FLAT)
    same = {"kp": [150.0] * 6, "damping": None, "output_max": None, "impedance_mode": None}
    check_env_args(task_of("lift"), described("lift", PUBLISHED, **same))
    # One robot's base is not turned.
    check_env_args(task_of("lift"), described("lift", PUBLISHED, input_ref_frame="base"))
    poses = {"input_type": "absolute", "input_max": 10, "input_min": -10}
    check_env_args(task_of("lift", absolute_actions=True), described("lift", PUBLISHED, **poses))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_max", [0.01] * 3 + [0.5] * 3),
        ("output_min", -0.05),
        ("input_max", 2),
        ("kp", 50),
        ("damping", 0.5),
        ("damping_ratio", 2),
        ("impedance_mode", "variable"),
        ("input_ref_frame", "base"),
        ("input_ref_frame", None),
    ],
)
def test_another_motion_of_the_same_action_is_refused(key, value):
    with pytest.raises(ConfigError, match=r"^demo\.hdf5: the file's controller has ") as refused:
        check_env_args(task_of("transport"), described("transport", PUBLISHED, **{key: value}), source="demo.hdf5")
    name = "damping_ratio" if key == "damping" else key
    assert f"{name}={value or 'base'}, the task's {name}=" in str(refused.value)


def test_another_motion_is_refused_in_the_flat_dialect_too():
    flat = json.loads(json.dumps(FLAT))
    flat["env_kwargs"]["controller_configs"]["kp"] = 50
    with pytest.raises(ConfigError, match=r"kp=50, the task's kp=150"):
        check_env_args(task_of("lift"), flat)
    assert check_env_args(task_of("lift"), flat, same_motion=False)["env_name"] == "Lift"


@pytest.mark.parametrize("key", ["input_ref_frame", "kp"])
def test_poses_have_a_frame_and_a_stiffness(key):
    wrong = {"input_ref_frame": "base", "kp": 50}[key]
    given = described("lift", PUBLISHED, input_type="absolute", **{key: wrong})
    with pytest.raises(ConfigError, match=f"{key}={wrong}"):
        check_env_args(task_of("lift", absolute_actions=True), given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "must be JSON"),
        ("[1]", '"env_name" and "env_kwargs"'),
        ('{"env_name": "Lift"}', '"env_name" and "env_kwargs"'),
        ('{"env_name": "Lift", "type": 2, "env_kwargs": {}}', "of robosuite"),
        ('{"env_name": "Lift", "env_kwargs": {}}', '"controller_configs" must be an object'),
    ],
)
def test_what_is_no_description_is_refused_by_name_of_the_file(text, said):
    with pytest.raises(ConfigError, match=rf"^demo\.hdf5.*{said}"):
        read_env_args(text, source="demo.hdf5")


def test_the_robots_frame_has_no_flat_dialect():
    given = env_args_of(task_of("lift"), version="1.5.2")
    given["env_kwargs"]["controller_configs"]["body_parts"]["right"]["input_ref_frame"] = "base"
    with pytest.raises(ConfigError, match="input_ref_frame"):
        flat_env_args(given)


def test_cameras_are_described_by_name_and_size():
    given = env_args_of(
        task_of("lift", images={"agentview_image": 84, "robot0_eye_in_hand_image": 64}), version="1.5.2"
    )
    kwargs = given["env_kwargs"]
    assert kwargs["camera_names"] == ["agentview", "robot0_eye_in_hand"]
    assert kwargs["camera_heights"] == kwargs["camera_widths"] == [84, 64]
    assert kwargs["use_camera_obs"]
