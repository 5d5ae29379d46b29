"""Tasks of robosuite 1.5: Panda arms under operational-space pose control, observed as in robomimic's datasets.

Actions [A], seven per arm: displacement in position and axis-angle in units of `OSC_POSE`'s steps, in [-1, 1]; or, with
`task.absolute_actions`, position in metres and axis-angle in radians, in the world frame. The seventh is the gripper:
its sign opens (-1) or closes (+1), and no motion at 0. Observations keep robosuite's names but for `object`, which it
calls `object-state`; quaternions are (x, y, z, w). The reward is 1 when the task's own success check holds, else 0.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from domains.robotics.environments.env_args import (
    IMAGE,
    EnvArgs,
    absolute_actions,
    arm_controller,
    check_env_args,
    env_args_of,
)
from domains.robotics.environments.requirements import rendering_failed, robosuite_package
from domains.robotics.environments.spaces import checked_action, checked_state, observation_space
from domains.robotics.task import TaskConfig

Observation = dict[str, np.ndarray]
RENAMED = {"object": "object-state"}
ARM_ACTIONS = 7  # position 3, rotation 3, gripper 1


class RobosuiteEnvironment(gymnasium.Env[Observation, np.ndarray]):
    """One task of robosuite.

    `env_args` (either dialect) simulates a demonstration file's environment instead of the task's default, of which it
    must be a variant. `simulator` is robosuite's environment: experts read their privileged state from it.
    """

    def __init__(
        self,
        task: TaskConfig,
        *,
        render_size: int | None = None,
        render_camera: str = "agentview",
        env_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ConfigError if packages, versions or the OpenGL library do not fit, or the task has no such key."""
        suite = robosuite_package(pictures=bool(task.images) or render_size is not None)
        self.env_args: EnvArgs = env_args_of(task, version=suite.__version__)
        if env_args is not None:
            given = check_env_args(task, env_args, same_motion=False)
            self.env_args["env_kwargs"] = _variant(self.env_args, given)
        self.task = task
        self.simulator = _make(suite, self.env_args, render_size=render_size)
        # Also at the interpreter's exit, while OpenGL still answers.
        self._finalizer = weakref.finalize(self, _close, self.simulator)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.control_hz}
        self.render_mode = None if render_size is None else "rgb_array"
        self._render_size, self._render_camera = render_size, render_camera
        self._steps = 0

        seen = self.simulator.observation_spec()
        numbers = {_ours(key): np.size(value) for key, value in seen.items() if np.ndim(value) == 1}
        cameras = tuple(f"{camera}{IMAGE}" for camera in self.simulator.sim.model.camera_names)
        self.observation_space = observation_space(task, numbers=numbers, images=cameras)
        self.action_space = self._action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`, or restore a state.

        options: {"state": [S]} as `get_state` returned it, and {"model": str} as `get_model` did. Sizes of objects are
        part of the model and not of the state: without a model they are those of `seed`'s episode.
        """
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**32)) if seed is None else seed
        # All of robosuite's samplers hold this one generator: it is set back, not replaced.
        self.simulator.rng.bit_generator.state = np.random.default_rng(episode).bit_generator.state
        options = options or {}
        model = options.get("model")
        if model is None:
            self.simulator.reset()
        else:
            self.simulator.reset_from_xml_string(self.simulator.edit_model_xml(model))
        if (state := options.get("state")) is not None:
            sim = self.simulator.sim
            sim.set_state_from_flattened(checked_state(state, 1 + sim.model.nq + sim.model.nv))
        self._settle()
        self._steps = 0
        return self._observe(self.simulator._get_observations(force_update=True)), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act for 1 / control_hz seconds. Displacements beyond [-1, 1] are clipped by the controller."""
        seen, _, _, _ = self.simulator.step(checked_action(action, self.action_space))
        self._steps += 1
        info = self._info()
        truncated = self._steps >= self.task.max_steps
        return self._observe(seen), float(info["success"]), info["success"], truncated, info

    def get_state(self) -> np.ndarray:
        """Time, joint positions, joint velocities of the simulator, float64 [S]."""
        return np.asarray(self.simulator.sim.get_state().flatten(), dtype=np.float64)

    def get_model(self) -> str:
        """MuJoCo XML of the present episode, with the sizes of its objects; robomimic's `model_file`."""
        return str(self.simulator.sim.model.get_xml())

    def absolute_action(self, action: np.ndarray) -> np.ndarray:
        """The poses [A] that a displacement `action` [A] would send the arms to from here; grippers unchanged.

        It is the goal that the controller itself forms: executed with `absolute_actions`, the motion is the same.
        """
        if self.task.absolute_actions:
            raise ValueError("absolute_action converts displacements, this environment's actions are poses already")
        from scipy.spatial.transform import Rotation  # a dependency of robosuite

        sim = self.simulator.sim
        sim.forward()  # poses lag one substep behind the joints after a step
        arms = np.array(checked_action(action, self.action_space)).reshape(-1, ARM_ACTIONS)
        scale = np.asarray(arm_controller(self.env_args)["output_max"])
        for robot, arm in zip(self.simulator.robots, arms, strict=True):
            site = robot.eef_site_id["right"]
            step = np.clip(arm[:6], -1, 1) * scale
            turned = Rotation.from_rotvec(step[3:]) * Rotation.from_matrix(sim.data.site_xmat[site].reshape(3, 3))
            arm[:3] = sim.data.site_xpos[site] + step[:3]
            arm[3:6] = turned.as_rotvec()
        return arms.reshape(-1)

    def render(self) -> np.ndarray | None:
        """The present view of the camera, uint8 [render_size, render_size, 3]; None without `render_size`."""
        if self._render_size is None:
            return None
        side = self._render_size
        return self._upright(self.simulator.sim.render(width=side, height=side, camera_name=self._render_camera))

    def close(self) -> None:
        """Free the simulator and its OpenGL context; may be called twice."""
        self._finalizer()

    def _settle(self) -> None:
        """Let everything derived follow from the state alone, so that one restored goes on exactly as one reached."""
        sim = self.simulator.sim
        sim.forward()
        for robot in self.simulator.robots:
            # The controller leans towards the posture of its start, and took masses before the fingers were in place.
            robot.part_controllers["right"].update_initial_joints(sim.data.qpos[robot._ref_joint_pos_indexes])
        sim.data.qacc_warmstart[:] = 0  # the solver's start: must not depend on what was simulated before

    def _observe(self, seen: Mapping[str, Any]) -> Observation:
        low_dim = {key: np.asarray(seen[RENAMED.get(key, key)], dtype=np.float32) for key in self.task.observations}
        return low_dim | {key: self._upright(seen[key]) for key in self.task.images}

    def _upright(self, image: np.ndarray) -> np.ndarray:
        """OpenGL counts rows from below."""
        return np.ascontiguousarray(image[::-1])

    def _info(self) -> dict[str, Any]:
        success = bool(self.simulator._check_success())
        return {"success": success, "stages": int(success)}

    def _action_space(self) -> spaces.Box:
        high = np.ones(ARM_ACTIONS, dtype=np.float32)
        if absolute_actions(self.env_args):
            high[:6] = [np.inf] * 3 + [np.pi] * 3
        high = np.tile(high, self.task.robots)
        return spaces.Box(-high, high, dtype=np.float32)


def _make(suite: Any, env_args: EnvArgs, *, render_size: int | None) -> Any:
    """robosuite's environment; ConfigError if OpenGL is there but gives no context."""
    kwargs = dict(env_args["env_kwargs"])
    pictures = kwargs["use_camera_obs"] or render_size is not None
    # "mujoco" without a window: the only one of robosuite's renderers that frees its model at a reset.
    kwargs |= {"has_offscreen_renderer": pictures, "renderer": "mujoco", "seed": 0}
    if not pictures:
        return suite.make(env_args["env_name"], **kwargs)
    try:
        return suite.make(env_args["env_name"], **kwargs)
    except (ImportError, AttributeError) as error:  # PyOpenGL's and robosuite's ways to say that there is no display
        raise rendering_failed(error) from error


def _variant(ours: EnvArgs, given: EnvArgs) -> dict[str, Any]:
    """What a file says of robots and physics, with our cameras and without windows."""
    cameras = ("has_renderer", "has_offscreen_renderer", "use_camera_obs", "use_object_obs", "ignore_done")
    views = ("camera_names", "camera_heights", "camera_widths", "camera_depths")
    physics = {key: value for key, value in given["env_kwargs"].items() if key not in (*cameras, *views)}
    physics.pop("render_gpu_device_id", None)
    return physics | {key: ours["env_kwargs"][key] for key in (*cameras, *views) if key in ours["env_kwargs"]}


def _ours(key: str) -> str:
    return next((ours for ours, theirs in RENAMED.items() if theirs == key), key)


def _close(simulator: Any) -> None:
    simulator.close()
