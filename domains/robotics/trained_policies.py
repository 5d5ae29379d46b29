"""Policies to play: the last checkpoints of a training run, or a folder that `save_pretrained` wrote."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from domains.robotics.chunk_policy import ChunkPolicy
from domains.robotics.config import PolicyConfig, RoboticsConfig
from domains.robotics.policy_kinds import build_policy, load_policy
from domains.robotics.pretrained_policy import CONFIG, read_description
from domains.robotics.task import TaskConfig
from drifting.training.checkpoint import restore_entries
from drifting.training.checkpoint_file import checkpoint_paths, step_of
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError, ConfigError
from drifting.training.run_dir import RESOLVED, load_config


@dataclass(frozen=True)
class TrainedPolicies:
    """The policies of `folder`, oldest first, and how they are played."""

    folder: Path
    task: TaskConfig
    policy: PolicyConfig
    trained: PolicyConfig  # `policy` as it was trained
    demonstrations: str  # where the training's came from
    checkpoints: tuple[Path, ...]  # none in a folder of `save_pretrained`
    config: RoboticsConfig | None  # likewise

    @classmethod
    def find(cls, folder: Path, last: int) -> "TrainedPolicies":
        """The last `last` checkpoints of a run, or as many as it has.

        Raises RunDirError if `folder` is neither a run of robot training nor a saved policy, and CheckpointError if
        the run has no checkpoint yet.
        """
        if (folder / CONFIG).exists() and not (folder / RESOLVED).exists():
            found = read_description(folder)
            return cls(folder, found.task, found.policy, found.policy, found.demonstrations, (), None)
        config = load_config(folder, RoboticsConfig)
        paths = checkpoint_paths(folder)
        if not paths:
            raise CheckpointError(f"{folder} has no checkpoint yet. Train first, or wait for the first one.")
        own = config.policy
        return cls(folder, config.task, own, own, config.demos.source, tuple(paths[-last:]), config)

    def sampled_by(self, sampler: str | None, inference_steps: int | None) -> "TrainedPolicies":
        """The same weights of a diffusion baseline with another sampler or number of steps; None keeps what it has."""
        if sampler is None and inference_steps is None:
            return self
        kind = self.policy.kind
        if kind != "diffusion":
            raise ConfigError(f"sampler and inference_steps belong to diffusion baselines, {self.folder} is {kind}")
        changes = {"sampler": sampler, "inference_steps": inference_steps}
        changed = {name: value for name, value in changes.items() if value is not None}
        try:
            sampling = replace(self.policy.diffusion, **changed)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return replace(self, policy=replace(self.policy, diffusion=sampling))

    def executing(self, action_steps: int | None) -> "TrainedPolicies":
        """The same weights, asked again after `action_steps` actions; None keeps what they were trained with."""
        if action_steps is None:
            return self
        try:
            return replace(self, policy=replace(self.policy, action_steps=action_steps))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def label(self) -> str:
        """What is played, in file names and tables: "drifting", "diffusion ddim 16"."""
        policy = self.policy
        asked_otherwise = policy.action_steps != self.trained.action_steps
        often = f" {policy.action_steps} actions" if asked_otherwise else ""
        if policy.kind != "diffusion":
            return policy.kind + often
        return f"{policy.kind} {policy.diffusion.sampler} {policy.diffusion.inference_steps}{often}"

    @property
    def steps(self) -> list[int]:
        """Training steps of the checkpoints; 0 for a saved policy, which does not say."""
        return [step_of(path) for path in self.checkpoints] or [0]

    def load(self, device: torch.device) -> Iterator[tuple[int, ChunkPolicy]]:
        """Each policy with its averaged weights (the first decay), frozen, and its training step.

        All are read now, and moved to `device` when their turn comes: a run that is still training deletes its oldest
        checkpoints while these are played.
        """
        if self.config is None:
            found = deque([(0, load_policy(self.folder))])
        else:
            found = deque(_average(path, self.config) for path in self.checkpoints)

        def in_turn() -> Iterator[tuple[int, ChunkPolicy]]:
            while found:
                step, policy = found.popleft()
                policy.config = self.policy
                yield step, policy.to(device).eval().requires_grad_(False)

        return in_turn()


def _average(path: Path, config: RoboticsConfig) -> tuple[int, ChunkPolicy]:
    policy = build_policy(config)
    ema = Ema(policy, config.ema.decays, warmup=config.ema.warmup)
    step = restore_entries(path, ema=ema)
    policy.load_state_dict(ema.model().state_dict())
    return step, policy
