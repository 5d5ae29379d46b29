"""Layers of the generator: transformer blocks steered by a condition vector c (paper A.2).

    x <- x + g1 * Attention((1 + s1) norm(x) + b1)
    x <- x + g2 * Mlp((1 + s2) norm(x) + b2)            (b1, s1, g1, b2, s2, g2) = Linear(SiLU(c)), zero at the start

Norms and the modulation from c are float32 whatever autocast says (`conditioning` on FSDP); the large matrix products
follow autocast.

Shapes: K samples, T tokens, h width, A heads, d = h / A head width.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORM_EPS = 1e-6
ROTARY_BASE = 10_000.0


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context in which operations on x's device keep the dtype of their arguments."""
    if x.device.type == "meta":  # has no autocast to switch off
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last dimension, returned in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., h] -> [..., h]."""
        x = at_least_float32(x)
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, returned in float32; weight and bias only if affine."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., h] -> [..., h]."""
        x = at_least_float32(x)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS)


def token_norm(width: int, rms: bool) -> nn.Module:
    """Norm before a sub-layer. The layer norm has no affine part: the modulation that follows provides it."""
    return RMSNorm(width) if rms else LayerNorm(width, affine=False)


class Modulation(nn.Module):
    """`parts` vectors of width h from the condition: Linear(SiLU(c)) in float32, zero at the start ("adaLN-zero")."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """cond [K, h] -> `parts` tensors [K, 1, h], ready to broadcast over tokens."""
        cond = at_least_float32(cond)
        weight, bias = self.linear.weight.to(cond.dtype), self.linear.bias.to(cond.dtype)
        with without_autocast(cond):
            return F.linear(F.silu(cond), weight, bias).unsqueeze(1).chunk(self.parts, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift; x [K, T, h], shift and scale [K, 1, h]."""
    return torch.addcmul(shift, x, 1 + scale)


def rotary_table(tokens: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, d/2] of the angles t * 10000^(-2i/d), t = 0..T-1, i = 0..d/2-1."""
    rate = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle = torch.arange(tokens, device=device, dtype=torch.float32)[:, None] * rate
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+d/2}) by the angle of their token; x [..., T, A, d], cos and sin [T, d/2]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, then (optionally) rotary positions."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, rms: bool, float32: bool) -> None:
        super().__init__()
        self.heads, self.float32 = heads, float32
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        head_width = width // heads
        self.q_norm, self.k_norm = (
            (RMSNorm(head_width) if rms else LayerNorm(head_width, affine=True)) if qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [K, T, h], rotary table or None -> [K, T, h]."""
        q, k, v = rearrange(self.qkv(x), "k t (three a d) -> three k t a d", three=3, a=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # after the norms: they read whole rows
        if self.float32:
            with without_autocast(x):
                y = F.scaled_dot_product_attention(at_least_float32(q), at_least_float32(k), at_least_float32(v))
        else:
            y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.out(rearrange(y, "k a t d -> k t (a d)"))


class SwiGLU(nn.Module):
    """out(SiLU(gate x) * (value x)), hidden width 2/3 of mlp_ratio * h rounded up to a multiple of 32."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = 32 * math.ceil(int(2 / 3 * mlp_ratio * width) / 32)
        self.gate = nn.Linear(width, hidden)
        self.value = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [K, T, h] -> [K, T, h]."""
        gate, value = self.gate(x), self.value(x)
        if gate.requires_grad or value.requires_grad:
            return self.out(F.silu(gate) * value)
        # The widest tensors of the network: without a gradient they need no second and third copy in memory.
        return self.out(F.silu(gate, inplace=True).mul_(value))


class GeluMlp(nn.Module):
    """out(GELU(hidden x)), hidden width mlp_ratio * h."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, int(mlp_ratio * width))
        self.out = nn.Linear(int(mlp_ratio * width), width)

    def forward(self, x: Tensor) -> Tensor:
        """x [K, T, h] -> [K, T, h]."""
        return self.out(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """One transformer layer; the identity map at the start, because its gates are zero."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        rms: bool,
        swiglu: bool,
        qk_norm: bool,
        attention_float32: bool,
    ) -> None:
        super().__init__()
        self.modulation = Modulation(width, parts=6)
        self.norm1 = token_norm(width, rms)
        self.attention = Attention(width, heads, qk_norm=qk_norm, rms=rms, float32=attention_float32)
        self.norm2 = token_norm(width, rms)
        self.mlp = SwiGLU(width, mlp_ratio) if swiglu else GeluMlp(width, mlp_ratio)

    def forward(self, x: Tensor, cond: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [K, T, h], cond [K, h] -> [K, T, h]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)
        x = torch.addcmul(x, gate1, self.attention(modulate(self.norm1(x), shift1, scale1), rotary))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """Tokens to patch values: modulated norm and a Linear that is zero at the start."""

    def __init__(self, width: int, patch_values: int, rms: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, parts=2)
        self.norm = token_norm(width, rms)
        self.linear = nn.Linear(width, patch_values)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x [K, T, h], cond [K, h] -> [K, T, patch values]."""
        shift, scale = self.modulation(cond)
        return self.linear(modulate(self.norm(x), shift, scale))
