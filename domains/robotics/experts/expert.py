"""What shows a task: an expert reads the simulator's privileged state and says what to do next.

expert = expert_for(task.name)(environment)
observation, _ = environment.reset(seed=seed)
expert.reset()
while not expert.done:
    label = expert.act()  # clean
    environment.step(label + noise)  # what is executed may be noisy: the expert sees where that led
"""

from collections.abc import Iterator
from typing import Protocol

import gymnasium
import numpy as np


class Expert(Protocol):
    """A deterministic closed-loop controller of one environment."""

    done: bool

    def __init__(self, environment: gymnasium.Env) -> None:
        """Of this environment, wrapped or not."""
        ...

    def reset(self) -> None:
        """Begin an episode, after the environment's reset."""
        ...

    def act(self) -> np.ndarray:
        """The next action [A] in the present state; to be called once per step. `done` turns true when none is left."""
        ...


class ScriptedExpert:
    """An expert whose plan is a generator of actions, each computed from the state of its moment.

    A plan waits until it has reached what it moves to, begins again where something slips, and ends with the task.
    """

    def __init__(self, environment: gymnasium.Env) -> None:
        self.environment = environment.unwrapped
        self.done = False
        self._plan: Iterator[np.ndarray] | None = None
        self._last: np.ndarray | None = None

    def plan(self) -> Iterator[np.ndarray]:
        """The actions of one episode, [A] each; evaluated lazily, one per step."""
        raise NotImplementedError

    def rest(self, last: np.ndarray) -> np.ndarray:
        """What to do after the plan's end, given its last action."""
        raise NotImplementedError

    def reset(self) -> None:
        """Begin the plan again."""
        self.done = False
        self._plan, self._last = self.plan(), None

    def act(self) -> np.ndarray:
        """The plan's next action; past its end, rest."""
        if self._plan is None:
            raise RuntimeError("act before reset: an expert begins with reset(), after the environment's")
        action = next(self._plan, None)
        if action is None:
            self.done = True
            action = self.rest(self._last if self._last is not None else np.zeros(self.environment.action_space.shape))
        self._last = action
        return action
