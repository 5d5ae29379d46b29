"""Actions as the network sees them: relative to the present place if asked for, 6-D rotations, all in [-1, 1].

Shapes: E numbers of an action as the environment takes it, A numbers as the network does. They differ for absolute
poses of arms alone: 7 per arm (position, axis-angle, gripper) become 10 (position, 6-D rotation, gripper), since
axis-angle vectors jump at half a turn. B windows of H actions, To observed steps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from domains.robotics.normalizer import Normalizer
from domains.robotics.rotations import axis_angle_to_six_d, six_d_to_axis_angle
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

POSE, LONG_POSE = 7, 10


class ActionSpace(nn.Module):
    """Plain actions [B, ..., E] to the network's [B, ..., A] and back; the normaliser is part of the weights.

    `relative`: positions are given from where the hand is at the last observed step, `task.present` (relative
    trajectories, Chi et al., arXiv 2402.10329): a chunk spans centimetres then and not the whole workspace, so that the
    same error of the network is a smaller one of the hand.

    Raises:
        ConfigError: `relative` without absolute actions, or for a task that does not say or see where the hand is;
            absolute poses of another width than 7 per arm.
    """

    def __init__(self, task: TaskConfig, *, relative: bool = False) -> None:
        super().__init__()
        self.rotates = task.arm_poses
        if self.rotates and task.action_dim % POSE:
            raise ConfigError(f"task.action_dim must be a multiple of {POSE} for absolute poses, got {task.action_dim}")
        self.present = _present(task) if relative else {}
        arms = task.action_dim // POSE if self.rotates else 0
        self.plain_dim = task.action_dim
        self.dim = arms * LONG_POSE if self.rotates else task.action_dim
        rotations = [LONG_POSE * arm + 3 + index for arm in range(arms) for index in range(6)]
        self.normalizer = Normalizer(self.dim, untouched=rotations)

    def fit(self, actions: Tensor, observations: Mapping[str, Tensor] | None = None) -> None:
        """Take the bounds of the demonstrations' actions [..., E]; relative ones [B, H, E], with what was observed."""
        self.normalizer.fit(self._lengthen(actions - self._origin(actions, observations)))

    def encode(self, actions: Tensor, observations: Mapping[str, Tensor] | None = None) -> Tensor:
        """[B, ..., E] -> [B, ..., A]. `observations` {key: [B, To, ...]}: needed where actions are relative."""
        if actions.shape[-1] != self.plain_dim:
            raise ValueError(f"actions must be [..., {self.plain_dim}], got {tuple(actions.shape)}")
        return self.normalizer(self._lengthen(actions - self._origin(actions, observations)))

    def decode(self, actions: Tensor, observations: Mapping[str, Tensor] | None = None) -> Tensor:
        """[B, ..., A] -> [B, ..., E]; six numbers that are no rotation give the nearest one by Gram-Schmidt."""
        plain = self.normalizer.inverse(actions)
        if self.rotates:
            position, rotation, gripper = plain.unflatten(-1, (-1, LONG_POSE)).split([3, 6, 1], dim=-1)
            plain = torch.cat([position, six_d_to_axis_angle(rotation), gripper], dim=-1).flatten(-2)
        return plain + self._origin(plain, observations)

    def carried(self, actions: Tensor, observations: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> Tensor:
        """Chunks [B, k, H, E] that began elsewhere, begun here: the same relative chunks; equal to `actions` if plain.

        `observations` {key: [B k, To, ...]} of the windows that they are of, `to` {key: [B, To, ...]} of the own ones.
        """
        flat = actions.flatten(0, 1)
        return (flat - self._origin(flat, observations)).view_as(actions) + self._origin(actions, to)

    def _lengthen(self, actions: Tensor) -> Tensor:
        if not self.rotates:
            return actions
        position, rotation, gripper = actions.unflatten(-1, (-1, POSE)).split([3, 3, 1], dim=-1)
        return torch.cat([position, axis_angle_to_six_d(rotation), gripper], dim=-1).flatten(-2)

    def _origin(self, actions: Tensor, observations: Mapping[str, Tensor] | None) -> Tensor | float:
        """What the numbers of `actions` [B, ..., E] are counted from, to be broadcast; 0 if they are not relative."""
        if not self.present:
            return 0.0
        if observations is None:
            raise ValueError("observations must be given with relative actions")
        now = torch.cat([observations[key][:, -1, indices] for key, indices in self.present.items()], dim=-1)
        origin = actions.new_zeros(len(actions), self.plain_dim)
        origin[:, : now.shape[-1]] = now
        return origin.unflatten(0, (-1, *[1] * (actions.ndim - 2)))


def _present(task: TaskConfig) -> dict[str, list[int]]:
    """`task.present`, checked here: a task that is not relative may leave out the observation that it names."""
    if not task.present:
        raise ConfigError(f"policy.relative=true needs task.present, which task {task.name} does not have")
    if task.displaces:
        raise ConfigError("policy.relative=true needs task.absolute_actions=true: displacements are relative already")
    for key, indices in task.present.items():
        inside = key in task.observations and all(0 <= index < task.observations[key] for index in indices)
        if not inside:
            raise ConfigError(
                f"task.present.{key} must be indices into one of task.observations, {dict(task.observations)}, "
                f"got {indices}"
            )
    count = sum(map(len, task.present.values()))
    if count > task.action_dim:
        raise ConfigError(f"task.present must be at most task.action_dim = {task.action_dim} numbers, got {count}")
    return dict(task.present)
