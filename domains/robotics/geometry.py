"""What follows from observed poses, said to the network outright: rotations as matrices, offsets between things.

A hook and a ring are at o_1 and o_2 in the frames of their bodies, so the way from one to the other in the world is
p_2 - p_1 + R_2 o_2 - R_1 o_1: linear in what is computed here, where from positions and quaternions alone a network has
to learn a difference of products, to the millimetre. Quaternions also jump where q turns to -q, matrices do not.
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from domains.robotics.rotations import quaternion_to_matrix
from domains.robotics.task import PoseConfig, TaskConfig
from drifting.training.errors import ConfigError

QUATERNION, MATRIX = 4, 9


class PoseGeometry:
    """Of N poses in d dimensions, M of them with a rotation: M matrices, then the offsets [d] of each two positions.

    9 M + d N (N - 1) / 2 numbers, `dim`, of which the first 9 M, `rotation_dim`, are in [-1, 1] by themselves.
    Raises ConfigError if the task names no pose, one that it does not observe, places of 2 and of 3 dimensions, or one
    place alone.
    """

    def __init__(self, task: TaskConfig) -> None:
        if not task.poses:
            raise ConfigError(f"policy.geometry=true needs task.poses, which task {task.name} does not have")
        self.poses = {name: _checked(name, pose, task) for name, pose in task.poses.items()}
        sizes = {pose.size for pose in self.poses.values()}
        if len(sizes) > 1:
            raise ConfigError(f"task.poses must all have one size, 2 or 3, got {sorted(sizes)}")
        count = len(self.poses)
        self.rotation_dim = MATRIX * sum(pose.quaternion != "" for pose in self.poses.values())
        self.dim = self.rotation_dim + sizes.pop() * count * (count - 1) // 2
        if self.dim == 0:
            raise ConfigError(
                f"task.poses must name a second place or a quaternion: of {[*self.poses]} nothing follows"
            )

    def __call__(self, observations: Mapping[str, Tensor]) -> Tensor:
        """{key: [..., width]} -> [..., dim]."""
        positions, matrices = [], []
        for pose in self.poses.values():
            positions.append(observations[pose.position][..., pose.position_at :][..., : pose.size].float())
            if pose.quaternion:
                quaternion = observations[pose.quaternion][..., pose.quaternion_at :][..., :QUATERNION]
                matrices.append(quaternion_to_matrix(quaternion.float()).flatten(-2))
        offsets = [second - first for first, second in combinations(positions, 2)]
        return torch.cat([*matrices, *offsets], dim=-1)


def _checked(name: str, pose: PoseConfig, task: TaskConfig) -> PoseConfig:
    """`pose`, if all its numbers are among the low-dimensional observations."""
    parts = [("position", pose.position, pose.position_at, pose.size)]
    if pose.quaternion:
        parts.append(("quaternion", pose.quaternion, pose.quaternion_at, QUATERNION))
    for part, key, at, width in parts:
        if not 0 <= at <= task.observations.get(key, 0) - width:
            raise ConfigError(
                f"task.poses.{name} must be in one of task.observations, {dict(task.observations)}, "
                f"got the {part} at {at} to {at + width - 1} of {key!r}"
            )
    return pose
