"""The paper's generator as plainly as PyTorch says it: every norm, rotation and softmax spelt out, no fused kernel.

The yardstick of benchmarks.generators: the same parameters under the same names, the same numbers. The released recipe
only: RMS norms, SwiGLU, normalised queries and keys, rotary positions, context tokens and style noise.
Shapes: K samples, T tokens, h width.
"""

import math

import torch
from torch import Tensor, nn

from domains.imagenet.generator import GeneratorConfig


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Modulation(nn.Module):
    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        return self.linear(nn.functional.silu(cond)).unsqueeze(1).chunk(self.parts, dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        K, T, h = x.shape
        q, k, v = self.qkv(x).reshape(K, T, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.rotated(self.q_norm(q), cos, sin), self.rotated(self.k_norm(k), cos, sin)
        scores = q @ k.transpose(-2, -1) / math.sqrt(h // self.heads)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(K, T, h))

    @staticmethod
    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class SwiGLU(nn.Module):
    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = 32 * math.ceil(int(2 / 3 * mlp_ratio * width) / 32)
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.silu(self.gate(x)) * self.value(x))


class Block(nn.Module):
    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.modulation = Modulation(cfg.hidden, 6)
        self.norm1, self.norm2 = RMSNorm(cfg.hidden), RMSNorm(cfg.hidden)
        self.attention = Attention(cfg.hidden, cfg.heads)
        self.mlp = SwiGLU(cfg.hidden, cfg.mlp_ratio)

    def forward(self, x: Tensor, cond: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, cos, sin)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Conditioning(nn.Module):
    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.codes = cfg.style_codes
        self.classes = nn.Embedding(cfg.num_classes, cfg.hidden)
        self.style = nn.Embedding(cfg.style_tokens * cfg.style_codes, cfg.hidden)
        self.alpha_in, self.alpha_out = nn.Linear(256, cfg.hidden), nn.Linear(cfg.hidden, cfg.hidden)
        self.alpha_norm = RMSNorm(cfg.hidden)

    def forward(self, labels: Tensor, alpha: Tensor, style: Tensor) -> Tensor:
        angle = alpha[:, None] * 10_000 ** (-torch.arange(128, device=alpha.device) / 128)
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        guidance = self.alpha_norm(self.alpha_out(nn.functional.silu(self.alpha_in(waves))))
        chosen = self.style(style + self.codes * torch.arange(style.shape[1], device=style.device))
        return self.classes(labels) + chosen.sum(1) + 0.02 * guidance


class FinalLayer(nn.Module):
    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.norm = RMSNorm(width)
        self.linear = nn.Linear(width, patch_values)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale = self.modulation(cond)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class PlainGenerator(nn.Module):
    """Takes the state dict of a `DiTGenerator` of the same config."""

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        patch_values = cfg.channels * cfg.patch**2
        self.conditioning = Conditioning(cfg)
        self.patch_embed = nn.Linear(patch_values, cfg.hidden)
        self.position = nn.Parameter(torch.empty((cfg.size // cfg.patch) ** 2, cfg.hidden))
        self.context_linear = nn.Linear(cfg.hidden, cfg.hidden)
        self.context_embed = nn.Parameter(torch.empty(cfg.context_tokens, cfg.hidden))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.final = FinalLayer(cfg.hidden, patch_values)

    def forward(self, noise: Tensor, labels: Tensor, alpha: Tensor, style: Tensor) -> Tensor:
        """noise [K, C, H, W], labels [K], alpha [K], style [K, S] -> [K, C, H, W]."""
        cfg, K = self.cfg, len(noise)
        side, p = cfg.size // cfg.patch, cfg.patch
        cond = self.conditioning(labels, alpha, style)
        patches = noise.reshape(K, cfg.channels, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(K, side**2, -1)
        context = self.context_linear(cond)[:, None] + self.context_embed
        x = torch.cat([context, self.patch_embed(patches) + self.position], dim=1)
        head = cfg.hidden // cfg.heads
        rate = 10_000 ** (-torch.arange(0, head, 2, device=x.device) / head)
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * torch.cat([rate, rate])
        for block in self.blocks:
            x = block(x, cond, angle.cos(), angle.sin())
        values = self.final(x[:, cfg.context_tokens :], cond)
        return values.reshape(K, side, side, p, p, cfg.channels).permute(0, 5, 1, 3, 2, 4).reshape(noise.shape)
