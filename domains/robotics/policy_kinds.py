"""The kind of policy that a configuration or a folder means."""

import os

import torch

from domains.robotics.chunk_policy import ChunkPolicy
from domains.robotics.config import RoboticsConfig
from domains.robotics.diffusion_baseline import DiffusionPolicy
from domains.robotics.policy import DriftingPolicy
from domains.robotics.pretrained_policy import read_description


def build_policy(config: RoboticsConfig) -> ChunkPolicy:
    """A new policy with fresh weights and normalisers not yet fitted."""
    if config.policy.kind == "diffusion":
        return DiffusionPolicy(config.task, config.policy)
    return DriftingPolicy(config.task, config.policy, config.drift)


def load_policy(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> ChunkPolicy:
    """A policy that `save_pretrained` wrote; PolicyFileError if there is none."""
    kind = read_description(folder).policy.kind
    return (DiffusionPolicy if kind == "diffusion" else DriftingPolicy).from_pretrained(folder, device=device)
