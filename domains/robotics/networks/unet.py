"""The convolutional network of Diffusion Policy (arXiv 2303.04137): a U-Net over time, told the observation by FiLM.

Without a diffusion step it is the one-pass network of a drifting policy.
Shapes: K chunks, n of each condition, H timesteps, A action dimensions, C numbers of a condition; convolutions see
[K, channels, H].
"""

import torch
from torch import Tensor, nn

from domains.robotics.config import UnetConfig
from domains.robotics.networks.conditions import for_each_chunk
from domains.robotics.networks.steps import StepEmbedding


def activation(config: UnetConfig) -> nn.Module:
    """Mish as published, or SiLU."""
    return nn.Mish() if config.activation == "mish" else nn.SiLU()


def conv_block(channels: int, out: int, config: UnetConfig) -> nn.Sequential:
    """Convolution that keeps the length, group norm, activation."""
    conv = nn.Conv1d(channels, out, config.kernel_size, padding=config.kernel_size // 2)
    return nn.Sequential(conv, nn.GroupNorm(config.groups, out), activation(config))


class ConditionedBlock(nn.Module):
    """Two convolutions around a scale and a shift per channel that the condition gives (FiLM), and a shortcut."""

    def __init__(self, channels: int, out: int, cond_dim: int, config: UnetConfig) -> None:
        super().__init__()
        self.first = conv_block(channels, out, config)
        self.second = conv_block(out, out, config)
        self.film = nn.Sequential(activation(config), nn.Linear(cond_dim, 2 * out))
        self.shortcut = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x [K, channels, L], cond [K / n, C] -> [K, out, L]."""
        scale, shift = for_each_chunk(self.film(cond), len(x))[..., None].chunk(2, dim=1)
        return self.second(torch.addcmul(shift, scale, self.first(x))) + self.shortcut(x)


class ConditionalUnet(nn.Module):
    """Two blocks per level on the way down, two in the middle, two per level on the way up.

    The horizon must be a multiple of 2^(levels - 1).
    """

    def __init__(self, config: UnetConfig, *, action_dim: int, cond_dim: int, timed: bool) -> None:
        super().__init__()
        widths = config.down_dims
        self.step = StepEmbedding(config.step_width) if timed else None
        cond_dim += config.step_width if timed else 0

        def pair(channels: int, out: int) -> nn.ModuleList:
            return nn.ModuleList(
                [ConditionedBlock(channels, out, cond_dim, config), ConditionedBlock(out, out, cond_dim, config)]
            )

        inputs = [action_dim, *widths[:-1]]
        self.down = nn.ModuleList(pair(channels, out) for channels, out in zip(inputs, widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        # Each level up sees the level below, stretched, beside what the same level on the way down gave.
        rising = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(pair(2 * width, above) for width, above in rising)
        self.stretch = nn.ModuleList(nn.ConvTranspose1d(above, above, 4, stride=2, padding=1) for _, above in rising)
        self.leave = nn.Sequential(conv_block(widths[0], widths[0], config), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, x: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        """x [K, H, A], cond [K / n, C], time [K] or None -> [K, H, A]."""
        if self.step is not None:
            cond = torch.cat([for_each_chunk(cond, len(x)), self.step(time)], dim=-1)
        x = x.transpose(1, 2)
        passed = []
        for level, (first, second) in enumerate(self.down):
            x = second(first(x, cond), cond)
            passed.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.middle:
            x = block(x, cond)
        for (first, second), stretch in zip(self.up, self.stretch, strict=True):
            x = stretch(second(first(torch.cat([x, passed.pop()], dim=1), cond), cond))
        return self.leave(x).transpose(1, 2)
