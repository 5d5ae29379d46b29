"""Small tasks, policies and demonstrations of the policy tests."""

from pathlib import Path

import numpy as np
import torch

from domains.robotics.config import (
    DiffusionConfig,
    DriftConfig,
    MlpConfig,
    PolicyConfig,
    TransformerConfig,
    UnetConfig,
)
from domains.robotics.diffusion_baseline import DiffusionPolicy
from domains.robotics.policy import DriftingPolicy
from domains.robotics.task import TaskConfig

NETS = ("unet", "transformer", "mlp")


def small_task(**facts) -> TaskConfig:
    given = {"name": "small", "simulator": "robosuite", "environment": "None", "observations": {"object": 3, "hand": 2}}
    return TaskConfig(**(given | {"action_dim": 2, "max_steps": 10} | facts))


def small_config(**settings) -> PolicyConfig:
    given = {"horizon": 8, "action_steps": 4, "net": "mlp"}
    return PolicyConfig(
        unet=UnetConfig(down_dims=[8, 16], groups=4, step_width=8),
        transformer=TransformerConfig(width=16, depth=2, heads=2),
        mlp=MlpConfig(hidden=16, depth=2),
        **(given | settings),
    )


def drifting(task=None, drift=None, **settings) -> DriftingPolicy:
    torch.manual_seed(0)
    return DriftingPolicy(task or small_task(), small_config(**settings), drift or DriftConfig(num_generated=4))


def diffusion(task=None, steps=8, **settings) -> DiffusionPolicy:
    torch.manual_seed(0)
    chosen = {"train_steps": steps, "inference_steps": steps, **settings.pop("diffusion", {})}
    config = small_config(kind="diffusion", diffusion=DiffusionConfig(**chosen), **settings)
    return DiffusionPolicy(task or small_task(), config)


def observation(batch=3, steps=2, seed=1, **images):
    rng = torch.Generator().manual_seed(seed)
    seen = {"object": torch.randn(batch, steps, 3, generator=rng), "hand": torch.randn(batch, steps, 2, generator=rng)}
    for key, side in images.items():
        seen[key] = torch.randint(256, (batch, steps, side, side, 3), generator=rng, dtype=torch.uint8)
    return seen


class Batch:
    def __init__(self, batch=3, horizon=8, action_dim=2, seed=1, **images):
        self.observations = observation(batch, seed=seed, **images)
        self.actions = torch.randn(batch, horizon, action_dim, generator=torch.Generator().manual_seed(seed + 1))


def push_t_file(path: Path, episodes=6, steps=40) -> Path:
    """Demonstrations in the layout of PushT's npz: the pusher walks to a place that its first position decides."""
    rng = np.random.default_rng(0)
    state, action = [], []
    for _ in range(episodes):
        start = rng.uniform(100, 400, 2)
        way = np.linspace(0, 1, steps)[:, None]
        position = start + way * (512 - 2 * start) * 0.5
        state.append(np.concatenate([position, np.full((steps, 2), 256.0), np.zeros((steps, 1))], axis=1))
        action.append(np.concatenate([position[1:], position[-1:]]))
    keypoint = np.repeat(np.concatenate(state)[:, None, :2], 9, axis=1) + np.arange(9)[None, :, None]
    np.savez(
        path,
        action=np.concatenate(action).astype(np.float32),
        state=np.concatenate(state).astype(np.float32),
        keypoint=keypoint.astype(np.float32),
        episode_ends=np.arange(1, episodes + 1) * steps,
    )
    return path
