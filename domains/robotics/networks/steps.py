"""The diffusion step as a vector: sines and cosines of geometric frequencies, then two layers."""

import math

import torch
from torch import Tensor, nn

# Longest period of the sinusoids, over 2 pi: well beyond the number of diffusion steps.
LONGEST = 10_000.0


class StepEmbedding(nn.Module):
    """Diffusion step, a number in [0, number of steps), to a vector of `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"width must be even and at least 4, got {width}")
        self.half = width // 2
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, time: Tensor | None) -> Tensor:
        """Time [K] -> [K, W]; ValueError for None: a network that was built for steps needs one."""
        if time is None:
            raise ValueError("time must be a tensor [K] for a network of a diffusion policy, got None")
        weights = torch.arange(self.half, device=time.device, dtype=torch.float32) / (self.half - 1)
        angles = time.float()[:, None] * torch.exp(-math.log(LONGEST) * weights)
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))
