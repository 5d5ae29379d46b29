"""A transformer with a token per timestep of the chunk; the observation modulates every layer (adaptive norm).

Shapes: K chunks, n of each condition, H timesteps, A action dimensions, C numbers of a condition, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from domains.robotics.config import TransformerConfig
from domains.robotics.networks.conditions import for_each_chunk
from domains.robotics.networks.steps import StepEmbedding


class Block(nn.Module):
    """Attention over the chunk, then two layers; the condition shifts, scales and gates both, gates start at 0."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x [K, H, W], cond [K / n, W] -> [K, H, W]."""
        modulation = for_each_chunk(self.modulation(cond), len(x))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self._attention(self.norms[0](x) * (1 + scale1) + shift1)
        return x + gate2 * self.layers(self.norms[1](x) * (1 + scale2) + shift2)

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attend(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.join(mixed.transpose(1, 2).flatten(-2))


class ActionTransformer(nn.Module):
    """Chunk and condition to a chunk; positions of the timesteps are learnt."""

    def __init__(self, config: TransformerConfig, *, horizon: int, action_dim: int, cond_dim: int, timed: bool) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.condition = nn.Linear(cond_dim, width)
        self.step = StepEmbedding(width) if timed else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))

    def forward(self, x: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        """x [K, H, A], cond [K / n, C], time [K] or None -> [K, H, A]."""
        condition = self.condition(cond)
        if self.step is not None:
            condition = for_each_chunk(condition, len(x)) + self.step(time)
        x = self.enter(x) + self.position
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x)
