"""Kitchen: a Franka arm moves things in a kitchen, 12.5 Hz. The simulator is FrankaKitchen-v1 of gymnasium-robotics.

`state` [59]: positions of the arm's nine joints and their velocities (18), positions of the kitchen's joints and the
kettle's pose (21), their velocities (20), all with the simulator's observation noise. Actions [9] are joint velocities
in [-1, 1]. Any four of the seven things in their goal positions count, in any order, each once: stages 1 to 4, of which
the reward is the share done so far, and the fourth is success.

It is not the Kitchen of Diffusion Policy's tables, which is an older simulator with the goal appended to the
observation (60 numbers) and initial states taken from its demonstrations; here every episode starts alike, and seeds
differ in the observation noise, which the velocity controller feeds back to the arm.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from domains.robotics.environments.env_args import env_args_of
from domains.robotics.environments.requirements import choose_gl, simulator_package
from domains.robotics.environments.spaces import checked_action, checked_state, observation_space
from domains.robotics.task import TaskConfig

ARM_JOINTS = 9


class Kitchen(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """`get_state`: MuJoCo's integration state, the joint positions that the controller last saw, and what is done."""

    def __init__(self, task: TaskConfig, *, render_size: int | None = None) -> None:
        self.observation_space = observation_space(task, numbers={"state": 59})
        choose_gl(pictures=render_size is not None)
        module = simulator_package("gymnasium_robotics.envs.franka_kitchen.kitchen_env")
        self._mujoco = simulator_package("mujoco")
        self._things: list[str] = list(module.OBS_ELEMENT_GOALS)
        pictures = {} if render_size is None else {"width": render_size, "height": render_size}
        self.render_mode = None if render_size is None else "rgb_array"
        self._simulator = module.KitchenEnv(render_mode=self.render_mode, **pictures)
        self.action_space = spaces.Box(-1, 1, (ARM_JOINTS,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.control_hz}
        self.env_args = env_args_of(task, version="1")
        self._task = task
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The noise of the observations is drawn from the seed, also after a stored state."""
        super().reset(seed=seed)
        observation, _ = self._simulator.reset(seed=seed)
        seen = observation["observation"]
        if (state := (options or {}).get("state")) is not None:
            seen = self._restore(checked_state(state, len(self.get_state())))
        self._steps = 0
        return self._observe(seen), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Velocities beyond the action space are cut to it by the simulator."""
        observation, *_ = self._simulator.step(checked_action(action, self.action_space))
        self._steps += 1
        info = self._info()
        reward = info["stages"] / self._task.stages
        truncated = self._steps >= self._task.max_steps
        return self._observe(observation["observation"]), reward, info["success"], truncated, info

    def get_state(self) -> np.ndarray:
        """Float64 [S]."""
        model, data = self._simulator.model, self._simulator.data
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(model, kind))
        self._mujoco.mj_getState(model, data, physics, kind)
        done = [thing in self._simulator.episode_task_completions for thing in self._things]
        return np.concatenate([physics, self._simulator.robot_env._last_robot_qpos, done])

    def render(self) -> np.ndarray:
        """The kitchen from the simulator's own camera; about one picture a second without a GPU."""
        if self.render_mode is None:
            raise ValueError("render_size must be given to make_environment before render()")
        return np.asarray(self._simulator.render())

    def close(self) -> None:
        """Free the simulator and its renderer."""
        self._simulator.close()

    def _restore(self, state: np.ndarray) -> np.ndarray:
        simulator, count = self._simulator, len(self._things)
        physics, joints, done = np.split(state, [-count - ARM_JOINTS, -count])
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(simulator.model, simulator.data, physics, kind)
        # Only what positions and velocities determine: a whole mj_forward would replace the solver's warm start.
        self._mujoco.mj_fwdPosition(simulator.model, simulator.data)
        simulator.episode_task_completions[:] = [thing for thing, flag in zip(self._things, done, strict=True) if flag]
        simulator.tasks_to_complete = set(self._things) - set(simulator.episode_task_completions)
        observation = simulator._get_obs(simulator.robot_env._get_obs())["observation"]
        simulator.robot_env._last_robot_qpos = joints.copy()
        return np.asarray(observation)

    def _info(self) -> dict[str, Any]:
        stages = min(len(self._simulator.episode_task_completions), self._task.stages)
        return {"success": stages == self._task.stages, "stages": stages}

    def _observe(self, seen: np.ndarray) -> dict[str, np.ndarray]:
        return {"state": seen.astype(np.float32)}
