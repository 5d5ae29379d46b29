"""One environment that plays episodes in chunks: what the policy sees, what it commands, what comes of it."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from domains.robotics.environments import make_environment
from domains.robotics.task import TaskConfig

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True, slots=True)
class Film:
    """Pictures of an episode: [size, size, 3], `fps` of them per second of simulated time, at most."""

    size: int = 256
    fps: int = 10

    def every(self, control_hz: int) -> int:
        """Control steps from one picture to the next."""
        return max(1, control_hz // self.fps)


@dataclass(slots=True)
class Chunk:
    """What happened since the last command: a reset, or up to Ta steps."""

    observation: dict[str, np.ndarray]  # [To, ...], the last To steps; at the start the first one repeated
    rewards: list[float] = field(default_factory=list)  # one per step
    ended: bool = False  # by success or by the step limit
    success: bool = False
    stages: int = 0
    frames: list[np.ndarray] = field(default_factory=list)


class Seat:
    """Makes its environment at the first episode, and anew when a filmed episode needs one that renders."""

    def __init__(self, task: TaskConfig, observation_steps: int, film: Film) -> None:
        self._task = task
        self._film = film
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=observation_steps)
        self._environment: gymnasium.Env | None = None
        self._renders = False
        self._filmed = False
        self._steps = 0

    def start(self, seed: int, filmed: bool) -> Chunk:
        """Begin the episode of `seed`."""
        if self._environment is None or (filmed and not self._renders):
            self.close()
            self._environment = make_environment(self._task, render_size=self._film.size if filmed else None)
            self._renders = filmed
        self._filmed, self._steps = filmed, 0
        observation, _ = self._environment.reset(seed=seed)
        self._history.extend([observation] * (self._history.maxlen or 1))
        chunk = Chunk({})
        self._record(chunk)
        chunk.observation = self._stacked()
        return chunk

    def run(self, actions: np.ndarray) -> Chunk:
        """Execute actions [Ta, A] one after another until the episode ends."""
        if self._environment is None:
            raise RuntimeError("start(seed) comes before run(actions)")
        chunk = Chunk({})
        for action in actions:
            observation, reward, terminated, truncated, info = self._environment.step(action)
            self._steps += 1
            self._history.append(observation)
            chunk.rewards.append(float(reward))
            chunk.success = chunk.success or bool(info["success"])
            chunk.stages = max(chunk.stages, int(info["stages"]))
            chunk.ended = bool(terminated or truncated)
            self._record(chunk)
            if chunk.ended:
                break
        chunk.observation = self._stacked()
        return chunk

    def close(self) -> None:
        """Free the simulator."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _stacked(self) -> dict[str, np.ndarray]:
        return {key: np.stack([step[key] for step in self._history]) for key in self._history[0]}

    def _record(self, chunk: Chunk) -> None:
        due = self._steps % self._film.every(self._task.control_hz) == 0
        if self._filmed and self._environment is not None and (due or chunk.ended):
            chunk.frames.append(np.asarray(self._environment.render()))
