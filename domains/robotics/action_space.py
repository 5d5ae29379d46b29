"""Actions as the network sees them: absolute poses with 6-D rotations, everything normalised to [-1, 1].

Shapes: E numbers of an action as the environment takes it, A numbers as the network does. They differ for absolute
poses of arms alone: 7 per arm (position, axis-angle, gripper) become 10 (position, 6-D rotation, gripper), since
axis-angle vectors jump at half a turn.
"""

import torch
from torch import Tensor, nn

from domains.robotics.normalizer import Normalizer
from domains.robotics.rotations import axis_angle_to_six_d, six_d_to_axis_angle
from domains.robotics.task import TaskConfig

POSE, LONG_POSE = 7, 10


class ActionSpace(nn.Module):
    """Plain actions [..., E] to the network's [..., A] and back; the normaliser is part of the weights."""

    def __init__(self, task: TaskConfig) -> None:
        super().__init__()
        self.rotates = task.absolute_actions and task.simulator == "robosuite"
        if self.rotates and task.action_dim % POSE:
            raise ValueError(f"task.action_dim must be a multiple of {POSE} for absolute poses, got {task.action_dim}")
        arms = task.action_dim // POSE if self.rotates else 0
        self.plain_dim = task.action_dim
        self.dim = arms * LONG_POSE if self.rotates else task.action_dim
        rotations = [LONG_POSE * arm + 3 + index for arm in range(arms) for index in range(6)]
        self.normalizer = Normalizer(self.dim, untouched=rotations)

    def fit(self, actions: Tensor) -> None:
        """Take the bounds of the demonstrations' actions [..., E]."""
        self.normalizer.fit(self._lengthen(actions))

    def encode(self, actions: Tensor) -> Tensor:
        """[..., E] -> [..., A]."""
        if actions.shape[-1] != self.plain_dim:
            raise ValueError(f"actions must be [..., {self.plain_dim}], got {tuple(actions.shape)}")
        return self.normalizer(self._lengthen(actions))

    def decode(self, actions: Tensor) -> Tensor:
        """[..., A] -> [..., E]; six numbers that are no rotation give the nearest one by Gram-Schmidt."""
        plain = self.normalizer.inverse(actions)
        if not self.rotates:
            return plain
        position, rotation, gripper = plain.unflatten(-1, (-1, LONG_POSE)).split([3, 6, 1], dim=-1)
        return torch.cat([position, six_d_to_axis_angle(rotation), gripper], dim=-1).flatten(-2)

    def _lengthen(self, actions: Tensor) -> Tensor:
        if not self.rotates:
            return actions
        position, rotation, gripper = actions.unflatten(-1, (-1, POSE)).split([3, 3, 1], dim=-1)
        return torch.cat([position, axis_angle_to_six_d(rotation), gripper], dim=-1).flatten(-2)
