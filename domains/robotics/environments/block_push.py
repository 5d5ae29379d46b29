"""BlockPush: a stick pushes two blocks into two squares, either block into either square, in either order, at 10 Hz.

The two-block task of Implicit Behavioral Cloning and Behavior Transformers as Diffusion Policy (arXiv 2303.04137) uses
it, written anew on pybullet: observation, action, start, tolerance and length are the published ones, the shapes are
not, so that scores do not compare with published ones.

`state` [16]: block 1 x, y, yaw, block 2 x, y, yaw, stick x, y, where the stick is sent x, y, target 1 x, y, yaw, target
2 x, y, yaw; metres, and radians in [0, pi). Actions [2] displace the place that the stick is sent to, at most 0.1 each
way; with `task.absolute_actions` they are that place, which still moves by at most 0.1 each way. Stage 1 is done when a
block has come within 0.05 of a target, stage 2, which is success, when each block is that near to a target of its own.
The reward is the share of stages done so far.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from domains.robotics.environments.block_push_scene import SIMULATION_HZ, BlockPushScene
from domains.robotics.environments.env_args import env_args_of
from domains.robotics.environments.spaces import checked_action, checked_state, observation_space
from domains.robotics.task import TaskConfig

REACH = 0.1  # largest displacement of one step
WORKSPACE = np.array([[0.15, -0.5], [0.7, 0.5]])  # lowest and highest x, y of the stick
START = np.array([0.3, -0.4])
CENTER_X = 0.4
TOLERANCE = 0.05
LEAST_APART = 0.1  # of the blocks' x at the start
SETTLING_STEPS = 100  # of the simulation


class BlockPush(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """`get_state`: the scene's, where the stick is sent to, and the stages done."""

    def __init__(self, task: TaskConfig, *, render_size: int | None = None) -> None:
        self.observation_space = observation_space(task, numbers={"state": 16})
        low, high = WORKSPACE if task.absolute_actions else (-REACH * np.ones(2), REACH * np.ones(2))
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.control_hz}
        self.render_mode = None if render_size is None else "rgb_array"
        self.env_args = env_args_of(task, version="1")
        self.scene = BlockPushScene()
        self.stick_target = START.copy()
        self._task, self._render_size = task, render_size
        self._substeps = SIMULATION_HZ // task.control_hz
        self._stages = self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Blocks on the near side, x apart by more than 0.1; the target squares on the far side, in either order."""
        super().reset(seed=seed)
        state = (options or {}).get("state")
        if state is None:
            self.scene.place(START, *self._draw_poses())
            self.scene.move_effector(START, SETTLING_STEPS)
            self.stick_target, self._stages = START.copy(), 0
        else:
            values = checked_state(state, len(self.get_state()))
            self.scene.set_state(values[:-3])
            self.stick_target, self._stages = values[-3:-1].copy(), int(values[-1])
        self._steps = 0
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Displacements beyond the action space are cut to it, places beyond the workspace too."""
        self.stick_target = self._sent_to(action)
        self.scene.move_effector(self.stick_target, self._substeps)
        self._steps += 1
        self._stages = max(self._stages, self._stages_now())
        info = self._info()
        reward = self._stages / self._task.stages
        return self._observe(), reward, info["success"], self._steps >= self._task.max_steps, info

    def get_state(self) -> np.ndarray:
        """Float64 [S]."""
        return np.concatenate([self.scene.get_state(), self.stick_target, [self._stages]])

    def absolute_action(self, action: np.ndarray) -> np.ndarray:
        """Where a displacement `action` [2] would send the stick to from here, [2]."""
        if self._task.absolute_actions:
            raise ValueError("absolute_action converts displacements, this environment's actions are places already")
        return self._sent_to(action)

    def render(self) -> np.ndarray:
        """The table from above its far side."""
        if self._render_size is None:
            raise ValueError("render_size must be given to make_environment before render()")
        return self.scene.picture(self._render_size)

    def close(self) -> None:
        """End the simulation."""
        self.scene.close()

    def _sent_to(self, action: np.ndarray) -> np.ndarray:
        action = checked_action(action, self.action_space)
        displacement = np.clip(action - self.stick_target if self._task.absolute_actions else action, -REACH, REACH)
        place: np.ndarray = np.clip(self.stick_target + displacement, *WORKSPACE)
        return place

    def _draw_poses(self) -> tuple[np.ndarray, np.ndarray]:
        draw = self.np_random
        while True:
            places = draw.uniform([CENTER_X - 0.1, -0.35], [CENTER_X + 0.1, -0.05], size=(2, 2))
            if abs(places[0, 0] - places[1, 0]) > LEAST_APART:
                break
        blocks = np.column_stack([places, draw.uniform(0, np.pi, size=2)])
        side = draw.choice([-1.0, 1.0])
        targets = np.array([[CENTER_X + 0.12 * side, 0.2, np.pi], [CENTER_X - 0.12 * side, 0.2, np.pi]])
        return blocks, targets + draw.uniform(-1, 1, size=(2, 3)) * [0.005, 0.0075, np.pi / 30]

    def _stages_now(self) -> int:
        distances = np.linalg.norm(self.scene.blocks[:, None, :2] - self.scene.target_poses[None, :, :2], axis=-1)
        near = distances < TOLERANCE  # [block, target]
        if (near[0, 0] and near[1, 1]) or (near[0, 1] and near[1, 0]):
            return 2
        return int(near.any())

    def _info(self) -> dict[str, Any]:
        return {"success": self._stages == self._task.stages, "stages": self._stages}

    def _observe(self) -> dict[str, np.ndarray]:
        half_turns = [1.0, 1.0, np.pi]
        blocks, targets = (poses.copy() for poses in (self.scene.blocks, self.scene.target_poses))
        blocks[:, 2] %= half_turns[2]
        targets[:, 2] %= half_turns[2]
        parts = (blocks.ravel(), self.scene.effector, self.stick_target, targets.ravel())
        return {"state": np.concatenate(parts).astype(np.float32)}
