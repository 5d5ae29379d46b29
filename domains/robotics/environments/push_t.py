"""PushT: a disc pushes a T on to its target, 10 Hz. The simulator is gym-pusht; observation and resets are ours.

Observation of Diffusion Policy (arXiv 2303.04137), 20 numbers in pixels of a 512 x 512 board: `keypoint` [18], nine
points of the T, and `agent_pos` [2]. `image` is the board without the pusher's command, `task.images` pixels wide.
Actions [2] are positions that the pusher is sent to. The reward is clip(coverage / 0.95, 0, 1), coverage the share of
the target that the T covers; success is a coverage above 0.95.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from domains.robotics.environments.env_args import env_args_of
from domains.robotics.environments.requirements import simulator_package
from domains.robotics.environments.spaces import checked_action, checked_state, observation_space
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

BOARD = 512  # pixels
LEAST_PICTURE = 96  # pixels: in smaller ones the simulator cannot draw its cross

# The keypoints in the T's own frame, pixels: fitted to the published human demonstrations, whose recorded keypoints
# they reproduce to 0.001 pixels in the median frame (tests/robotics/test_push_t.py).
KEYPOINTS = np.array(
    [
        [9.26977, 90.04100],
        [-60.98345, -1.18673],
        [60.91278, -1.39331],
        [-0.27049, 25.54365],
        [-14.06496, 122.81587],
        [39.00275, 32.85744],
        [-39.96641, 32.72967],
        [-16.82435, 62.86320],
        [23.54148, -1.70025],
    ]
)

APART = (50, 50, 256, 256, 0)  # a pose in which nothing touches
POSE, MOTION = 5, 5  # pusher x, y, T x, y, angle; velocities of the pusher [2], of the T [2], its angular velocity


class PushT(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """`get_state` has ten numbers, pose and motion; `reset` also takes the five of the pose, as in the human data.

    Velocities are zero in a state of five numbers.
    """

    def __init__(self, task: TaskConfig, *, render_size: int | None = None) -> None:
        if render_size is not None and render_size < LEAST_PICTURE:
            raise ConfigError(
                f"pictures of {task.name} must be at least {LEAST_PICTURE} pixels wide, got {render_size}"
            )
        simulator = simulator_package("gym_pusht.envs.pusht")
        self.observation_space = observation_space(
            task, numbers={"keypoint": KEYPOINTS.size, "agent_pos": 2}, images=("image",)
        )
        self.action_space = spaces.Box(0, BOARD, (2,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.control_hz}
        self.render_mode = None if render_size is None else "rgb_array"
        self.env_args = env_args_of(task, version="v0")
        side = task.images.get("image", 96)
        self.task = task
        self._simulator = simulator.PushTEnv(
            obs_type="pixels" if task.images else "state",
            observation_width=side,
            observation_height=side,
            visualization_width=render_size or BOARD,
            visualization_height=render_size or BOARD,
        )
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """From a seed: the initial state that Diffusion Policy has for this seed, so that seeds compare with its."""
        super().reset(seed=seed)
        state = (options or {}).get("state")
        if state is None:
            self._simulator.reset(options={"reset_to_state": self._draw_pose(seed)})
        else:
            self._restore(checked_state(state, POSE, POSE + MOTION))
        self._simulator._last_action = None  # its own reset leaves the cross of the last episode in the picture
        self._steps = 0
        return self._observe(self._simulator.get_obs()), {"success": False, "stages": 0}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Commands outside the board are executed as they are, as in the human data's recorder."""
        seen, reward, success, _, _ = self._simulator.step(checked_action(action, self.action_space))
        self._steps += 1
        info = {"success": bool(success), "stages": int(success)}
        return self._observe(seen), float(reward), bool(success), self._steps >= self.task.max_steps, info

    def get_state(self) -> np.ndarray:
        """Pose and motion, [10]."""
        agent, block = self._simulator.agent, self._simulator.block
        motion = (*agent.velocity, *block.velocity, block.angular_velocity)
        return np.array([*agent.position, *block.position, block.angle, *motion], dtype=np.float64)

    def render(self) -> np.ndarray:
        """The board with a cross where the pusher is sent to."""
        return np.asarray(self._simulator.render())

    def close(self) -> None:
        """Free the simulator's window, of which there is none."""
        self._simulator.close()

    def _draw_pose(self, seed: int | None) -> list[float]:
        """Diffusion Policy's draw, by its generator and in its order.

        The simulator sets the angle after the place, as it does: that turns the T about its centre of mass, which moves
        the point that `position` means.
        """
        draw = np.random.RandomState(int(self.np_random.integers(2**32)) if seed is None else seed)
        places = [draw.randint(low, high) for low, high in ((50, 450), (50, 450), (100, 400), (100, 400))]
        return [*places, draw.randn() * 2 * np.pi - np.pi]

    def _restore(self, state: np.ndarray) -> None:
        pose, motion = state[:POSE].tolist(), [*state[POSE:].tolist(), *[0.0] * MOTION]
        self._simulator.reset(options={"reset_to_state": APART})
        agent, block = self._simulator.agent, self._simulator.block
        agent.position = pose[:2]
        block.angle = pose[4]  # before the place, which it would change
        block.position = pose[2:4]
        self._simulator.space.step(self._simulator.dt)  # the shapes follow their bodies when the space moves on
        agent.velocity, block.velocity, block.angular_velocity = motion[:2], motion[2:4], motion[4]

    def _observe(self, seen: np.ndarray) -> dict[str, np.ndarray]:
        """`seen`: the simulator's own observation, which is the image where the task has one."""
        body = self._simulator.block
        cos, sin = np.cos(body.angle), np.sin(body.angle)
        points = KEYPOINTS @ np.array([[cos, sin], [-sin, cos]]) + np.array(body.position)
        observation = {
            "keypoint": points.ravel().astype(np.float32),
            "agent_pos": np.array(self._simulator.agent.position, dtype=np.float32),
            "image": np.asarray(seen),
        }
        return {key: observation[key] for key in (*self.task.observations, *self.task.images)}
