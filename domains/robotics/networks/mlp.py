"""A residual perceptron on the flattened chunk.

Shapes: K chunks, H timesteps, A action dimensions, C numbers of the condition.
"""

import torch
from torch import Tensor, nn

from domains.robotics.config import MlpConfig
from domains.robotics.networks.steps import StepEmbedding

STEP_WIDTH = 64


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 norm(x)); starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[K, W] -> [K, W]."""
        return x + self.contract(nn.functional.silu(self.expand(self.norm(x))))


class ActionMlp(nn.Module):
    """Chunk and condition side by side through residual blocks."""

    def __init__(self, config: MlpConfig, *, horizon: int, action_dim: int, cond_dim: int, timed: bool) -> None:
        super().__init__()
        self.shape = (horizon, action_dim)
        chunk, width = horizon * action_dim, config.hidden
        self.step = StepEmbedding(STEP_WIDTH) if timed else None
        self.enter = nn.Linear(chunk + cond_dim + (STEP_WIDTH if timed else 0), width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, chunk))

    def forward(self, x: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        """x [K, H, A], cond [K, C], time [K] or None -> [K, H, A]."""
        parts = [x.flatten(1), cond]
        if self.step is not None:
            parts.append(self.step(time))
        hidden = self.enter(torch.cat(parts, dim=-1))
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(hidden).unflatten(-1, self.shape)
