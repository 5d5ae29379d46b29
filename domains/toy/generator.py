"""The generators of Fig. 4: one small MLP per target, noise to point in one pass."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from domains.toy.config import GeneratorConfig


def mlp(config: GeneratorConfig) -> nn.Sequential:
    """noise_dim -> width -> width -> width -> 2 with SiLU, as in the authors' notebook; [K, Z] -> [K, 2]."""
    widths = [config.noise_dim, config.width, config.width, config.width]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(config.width, 2))


class PerTargetGenerator(nn.Module):
    """B independent networks, one per drifting problem."""

    def __init__(self, num_targets: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.networks = nn.ModuleList([mlp(config) for _ in range(num_targets)])

    def forward(self, noise: Tensor) -> Tensor:
        """Normal noise [B, K, Z] -> samples [B, K, 2]."""
        return torch.stack([network(z) for network, z in zip(self.networks, noise, strict=True)])
