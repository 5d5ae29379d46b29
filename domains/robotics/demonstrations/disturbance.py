"""What is executed on top of an expert's actions, so that demonstrations show the way back to the expert's path.

Noise moves the hand by millimetres; a policy that errs by centimetres must have seen where that leads as well: pushes
carry the hand so far within a few steps. Labels stay what the expert wants.
"""

from dataclasses import dataclass

import numpy as np

ARM = 7  # numbers of an arm's action: displacement, axis-angle, gripper
PUSH_STEPS = 4
PUSH_SIZE = 0.5  # standard deviation of each component, in half ranges: 2.5 cm of goal per step for a Panda


@dataclass(frozen=True)
class Disturbance:
    """White `noise`, its standard deviation in half ranges of the actions, and `pushes`, how many begin in a step.

    A push is a constant displacement for `PUSH_STEPS` steps; rotations and grippers are not pushed.
    """

    noise: float = 0.0
    pushes: float = 0.0

    def episode(self, action_dim: int, draw: np.random.Generator) -> "EpisodeDisturbance":
        """That of one episode, of actions with `action_dim` numbers."""
        return EpisodeDisturbance(self, action_dim, draw)

    def __str__(self) -> str:
        return f"noise {self.noise:g}" + (f" and {self.pushes:g} pushes a step" if self.pushes else "")


class EpisodeDisturbance:
    """Draws a `Disturbance` step by step."""

    def __init__(self, of: Disturbance, action_dim: int, draw: np.random.Generator) -> None:
        self._of, self._draw = of, draw
        self._displacements = np.arange(action_dim) % ARM < 3 if action_dim % ARM == 0 else np.ones(action_dim, bool)
        self._push, self._left = np.zeros(action_dim), 0

    def step(self) -> np.ndarray:
        """What to add to the next action, [A] in half ranges."""
        noise = self._of.noise * self._draw.standard_normal(len(self._push))
        if self._of.pushes and self._left == 0 and self._draw.random() < self._of.pushes:
            self._push = PUSH_SIZE * self._draw.standard_normal(len(self._push)) * self._displacements
            self._left = PUSH_STEPS
        if self._left == 0:
            return noise
        self._left -= 1
        return noise + self._push
