"""A residual perceptron on the flattened chunk.

Shapes: K chunks, n of each condition, H timesteps, A action dimensions, C numbers of a condition.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

from domains.robotics.config import MlpConfig
from domains.robotics.networks.conditions import for_each_chunk
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
        width = config.hidden
        self.step = StepEmbedding(STEP_WIDTH) if timed else None
        self.inputs = (horizon * action_dim, cond_dim, STEP_WIDTH if timed else 0)
        self.enter = nn.Linear(sum(self.inputs), width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, horizon * action_dim))

    def forward(self, x: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        """x [K, H, A], cond [K / n, C], time [K] or None -> [K, H, A].

        The first layer is applied to chunk, condition and time apart: the condition is by far the widest of them.
        """
        of_chunk, of_cond, of_time = self.enter.weight.split(self.inputs, dim=1)
        hidden = linear(x.flatten(1), of_chunk) + for_each_chunk(linear(cond, of_cond, self.enter.bias), len(x))
        if self.step is not None:
            hidden = hidden + linear(self.step(time), of_time)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(hidden).unflatten(-1, self.shape)
