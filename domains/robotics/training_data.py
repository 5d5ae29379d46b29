"""The demonstrations of a run: windows to train on, and a fixed choice of held-out ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.robotics.batches import nearest_windows
from domains.robotics.chunk_policy import ChunkPolicy
from domains.robotics.config import RoboticsConfig
from domains.robotics.demonstrations.sources import load_demonstrations
from domains.robotics.demonstrations.windows import WindowDataset, Windows


@dataclass(frozen=True)
class TrainingData:
    """`held_out` are windows of whole episodes that are not trained on; None where none are held out."""

    train: WindowDataset
    held_out: Windows | None


def load_windows(config: RoboticsConfig, device: torch.device) -> TrainingData:
    """Make, download or open the demonstrations, and cut them into windows on `device`.

    Raises:
        DemonstrationError: they cannot be had, or do not fit the task.
        ConfigError: more episodes are to be held out than there are.
    """
    policy, task = config.policy, config.task
    store = load_demonstrations(task, config.demos, horizon=policy.horizon)
    windows = WindowDataset(
        store,
        horizon=policy.horizon,
        observation_steps=policy.observation_steps,
        action_steps=policy.action_steps,
        observation_keys=[*task.observations, *task.images],
    )
    config.demos.check_held_out(len(store))
    train, valid = windows.split(config.demos.validation_episodes, seed=config.demos.seed)
    held_out = None
    if valid is not None:
        chosen = torch.linspace(0, len(valid) - 1, min(config.held_out.windows, len(valid))).round().long()
        held_out = valid.batch(chosen).to(device)
    return TrainingData(train.to(device), held_out)


def fit_normalizers(policy: ChunkPolicy, windows: WindowDataset) -> None:
    """Bounds of all steps of the training demonstrations, or of all windows where actions are relative."""
    keys = list(policy.task.observations)
    if policy.config.relative:
        every = windows.batch(torch.arange(len(windows)), keys)
        policy.fit_normalizers(every.observations, every.actions)
    else:
        policy.fit_normalizers({key: windows.rows(key) for key in keys}, windows.rows("actions"))


def find_neighbours(config: RoboticsConfig, policy: ChunkPolicy, windows: WindowDataset) -> Tensor | None:
    """Windows whose actions are further positives, [W, k]; None if the loss takes none."""
    count = config.drift.neighbours
    return nearest_windows(windows, policy.observations, count) if count else None
