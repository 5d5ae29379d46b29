"""robomimic's `env_args`: which robosuite environment a demonstration file is from, in either of its two dialects.

    {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {"robots": ["Panda"], ...}}

`env_kwargs` are the arguments of robosuite.make. Up to robosuite 1.4 `controller_configs` describes the arm's
controller, flat; from 1.5 on it is composite, one controller per body part, and a flat one is refused by robosuite with
an unhelpful message. Absolute actions are control_delta = false in the one, input_type = "absolute" in the other. In
1.4 actions were in the world frame; 1.5 may also have them in the robot's.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

ROBOSUITE_TYPE, GYM_TYPE = 1, 2  # robomimic's numbers for robosuite and gymnasium's environments
ABSOLUTE = "abs_action"  # in the env_kwargs of BlockPush, by Diffusion Policy's name
IMAGE = "_image"  # the camera "agentview" observes as "agentview_image"

EnvArgs = dict[str, Any]

# Operational-space control of robomimic's datasets: steps of at most 5 cm and half a radian per action and axis.
OSC_POSE: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
# What an action means: of displacements all of it, of poses no scale.
_SCALE = ("input_max", "input_min", "output_max", "output_min")
_MOTION = ("kp", "damping_ratio", "impedance_mode")
_COMPOSITE_ONLY = ("input_type", "input_ref_frame", "gripper")


def env_args_of(task: TaskConfig, *, version: str) -> EnvArgs:
    """The description of `task` in `version` of its simulator; that of robosuite in the 1.5 dialect."""
    if task.simulator != "robosuite":
        kwargs: dict[str, Any] = {ABSOLUTE: True} if task.absolute_actions else {}
        return {"env_name": task.environment, "env_version": version, "type": GYM_TYPE, "env_kwargs": kwargs}
    cameras = [key.removesuffix(IMAGE) for key in task.images]
    kwargs = {
        "robots": ["Panda"] * task.robots,
        "controller_configs": _composite_controller(OSC_POSE, absolute=task.absolute_actions),
        "control_freq": task.control_hz,
        "has_renderer": False,
        "has_offscreen_renderer": bool(cameras),
        "use_camera_obs": bool(cameras),
        "use_object_obs": True,
        "reward_shaping": False,
        "ignore_done": True,
        # One evaluation of the physics per substep instead of two, with the same result to eight digits.
        "lite_physics": True,
    }
    if cameras:
        kwargs |= {"camera_names": cameras, "camera_depths": False}
        kwargs |= {"camera_heights": list(task.images.values()), "camera_widths": list(task.images.values())}
    return {"env_name": task.environment, "env_version": version, "type": ROBOSUITE_TYPE, "env_kwargs": kwargs}


def read_env_args(text: str | bytes | Mapping[str, Any], *, source: str = "env_args") -> EnvArgs:
    """A file's description, JSON or decoded, either dialect, as a new dictionary in the 1.5 dialect.

    Raises ConfigError, which begins with `source`, if it is no description of a robosuite environment.
    """
    try:
        given = deepcopy(dict(text)) if isinstance(text, Mapping) else json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source} must be JSON, got {error}") from error
    if not isinstance(given, dict) or "env_name" not in given or not isinstance(given.get("env_kwargs"), dict):
        raise ConfigError(f'{source} must be an object with "env_name" and "env_kwargs", got {str(given)[:80]}')
    if given.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        raise ConfigError(f'{source} must be of robosuite, "type": {ROBOSUITE_TYPE}, got {given["type"]}')
    kwargs = given["env_kwargs"]
    controller = _one(kwargs.get("controller_configs"), source)
    if "body_parts" in controller:
        return given
    kwargs["controller_configs"] = _composite_controller(controller, absolute=not controller.get("control_delta", True))
    kwargs.setdefault("lite_physics", False)  # as 1.4 simulated
    if "mount_types" in kwargs:
        kwargs["base_types"] = kwargs.pop("mount_types")
    return given


def flat_env_args(env_args: Mapping[str, Any], *, version: str = "1.4.1") -> EnvArgs:
    """The 1.4 dialect of a description in the 1.5 dialect, for tools that know no other; a new dictionary.

    Raises ConfigError for what 1.4 cannot say: a controller per arm, or actions in the robot's frame.
    """
    given = read_env_args(env_args)
    kwargs = given["env_kwargs"]
    controller = arm_controller(given)
    if controller.get("input_ref_frame", "base") != "world":
        raise ConfigError(
            'env_args with input_ref_frame="base" have no 1.4 dialect: its actions are in the world frame'
        )
    absolute = controller.get("input_type", "delta") == "absolute"
    flat = {key: value for key, value in controller.items() if key not in _COMPOSITE_ONLY}
    kwargs["controller_configs"] = flat | {"control_delta": not absolute}
    kwargs.pop("lite_physics", None)
    if "base_types" in kwargs:
        kwargs["mount_types"] = kwargs.pop("base_types")
    return given | {"env_version": version}


def arm_controller(env_args: Mapping[str, Any], *, source: str = "env_args") -> dict[str, Any]:
    """The controller of the arms in a description of the 1.5 dialect. ConfigError if arms differ or there is none."""
    parts = _one(env_args["env_kwargs"].get("controller_configs"), source).get("body_parts", {})
    arms = parts.get("arms", parts)  # robosuite reads both nestings
    controllers = [part for name, part in arms.items() if name in ("right", "left")]
    if not controllers or any(other != controllers[0] for other in controllers):
        raise ConfigError(f"{source} must have one controller for all arms, got body parts {list(arms)}")
    return dict(controllers[0])


def absolute_actions(env_args: Mapping[str, Any]) -> bool:
    """Whether actions are poses instead of displacements; of a description in either dialect."""
    return bool(arm_controller(read_env_args(env_args)).get("input_type", "delta") == "absolute")


def check_env_args(
    task: TaskConfig, env_args: Mapping[str, Any], *, source: str = "env_args", same_motion: bool = True
) -> EnvArgs:
    """The description in the 1.5 dialect if `task` can learn from a file that has it, else ConfigError.

    They must agree in environment, number of robots, type of controller, control frequency and kind of action, and with
    `same_motion` in everything that decides where the controller moves to at an action.
    """
    given = read_env_args(env_args, source=source)
    kwargs = given["env_kwargs"]
    controller = arm_controller(given, source=source)
    robots = kwargs.get("robots", ["Panda"])
    facts = {
        "task.environment": (task.environment, given["env_name"]),
        "task.robots": (task.robots, 1 if isinstance(robots, str) else len(robots)),
        "task.control_hz": (task.control_hz, kwargs.get("control_freq", 20)),
        "task.absolute_actions": (task.absolute_actions, controller.get("input_type", "delta") == "absolute"),
    }
    for key, (expected, found) in facts.items():
        if expected != found:
            raise ConfigError(f"{source}: the file has {key}={found}, the task {key}={expected}: choose the other task")
    if controller.get("type") != "OSC_POSE":
        raise ConfigError(f"{source}: the arm's controller must be OSC_POSE, got {controller.get('type')}")
    if same_motion:
        _check_motion(task, controller, source)
    return given


def _check_motion(task: TaskConfig, controller: Mapping[str, Any], source: str) -> None:
    """Refuse a controller that moves otherwise than the task's, with which a trained policy is played."""
    found = {"input_ref_frame": "base"} | OSC_POSE | dict(controller)  # robosuite's defaults where the file is silent
    found["damping_ratio"] = controller.get("damping_ratio", controller.get("damping", 1))  # its older name
    expected = OSC_POSE | {"input_ref_frame": "world"}
    keys = [*_MOTION] if task.absolute_actions else [*_SCALE, *_MOTION]
    # The base of a robot that is alone is not turned, so that displacements are the same in both frames.
    if task.absolute_actions or task.robots > 1:
        keys.append("input_ref_frame")
    for key in keys:
        if not _same_setting(found[key], expected[key]):
            raise ConfigError(
                f"{source}: the file's controller has {key}={found[key]}, the task's {key}={expected[key]}: "
                "the same action is another motion. Give demonstrations recorded with the task's controller"
            )


def _same_setting(found: Any, expected: Any) -> bool:
    """Numbers may be one for all axes or one for each."""
    if isinstance(expected, str) or isinstance(found, str) or found is None:
        return bool(found == expected)
    return np.shape(found) in ((), (6,)) and np.allclose(found, expected)


def _composite_controller(arm: Mapping[str, Any], *, absolute: bool) -> dict[str, Any]:
    """The 1.5 dialect of an arm's flat controller; two arms share it, each under the name "right" of its robot."""
    part = {key: value for key, value in arm.items() if key != "control_delta"}
    part |= {
        "input_type": "absolute" if absolute else "delta",
        "input_ref_frame": "world",
        "gripper": {"type": "GRIP"},
    }
    return {"type": "BASIC", "body_parts": {"right": part}}


def _one(controllers: Any, source: str) -> dict[str, Any]:
    """The controller; of a list, one per robot, the one that all share."""
    given = controllers if isinstance(controllers, list) else [controllers]
    if not given or not isinstance(given[0], dict) or any(other != given[0] for other in given):
        raise ConfigError(f'{source}: "controller_configs" must be an object, the same for all robots, got {given}')
    return given[0]
