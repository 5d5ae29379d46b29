"""The condition vector c of the generator (paper A.2).

c = class embedding + sum_i E_i[n_i] + 0.02 RMSNorm(MLP(sinusoid(alpha)))

n_i are random style indices, one per codebook E_i: the discrete part of the noise. alpha is the guidance scale, neither
scaled nor in logarithm.

Shapes: K samples, h width, S codebooks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.transformer import RMSNorm, without_autocast

ALPHA_FREQUENCIES = 128
ALPHA_GAIN = 0.02  # brings the normalised alpha embedding to the standard deviation of the tables
TABLE_STD = 0.02


def sinusoid(values: Tensor, frequencies: int = ALPHA_FREQUENCIES) -> Tensor:
    """cos and sin of values * 10000^(-i/frequencies); values [K] -> [K, 2 * frequencies]."""
    steps = torch.arange(frequencies, device=values.device, dtype=torch.float32)
    angle = values[:, None].float() * torch.exp(-math.log(10_000.0) / frequencies * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Conditioning(nn.Module):
    """Class label, guidance scale and style indices to one vector, in float32 whatever autocast says.

    But for FSDP with parallel.precision=bfloat16, which gathers these weights in bfloat16 as all others.
    """

    def __init__(self, width: int, num_classes: int, style_tokens: int, style_codes: int) -> None:
        super().__init__()
        self.num_classes, self.style_tokens, self.style_codes = num_classes, style_tokens, style_codes
        self.classes = nn.Embedding(num_classes, width)
        # S codebooks stacked in one table; the bag adds the S chosen rows without storing [K, S, h].
        self.style = nn.EmbeddingBag(style_tokens * style_codes, width, mode="sum") if style_tokens else None
        self.alpha_in = nn.Linear(2 * ALPHA_FREQUENCIES, width)
        self.alpha_out = nn.Linear(width, width)
        self.alpha_norm = RMSNorm(width)

    def forward(self, labels: Tensor, alpha: Tensor, style: Tensor | None) -> Tensor:
        """labels [K] int64, alpha [K] float, style [K, S] int64 (None without codebooks) -> [K, h]."""
        with without_autocast(alpha):
            hidden = F.silu(self.alpha_in(sinusoid(alpha).to(self.alpha_in.weight.dtype)))
            cond = self.classes(labels) + ALPHA_GAIN * self.alpha_norm(self.alpha_out(hidden))
            if self.style is not None and style is not None:
                first_row = self.style_codes * torch.arange(self.style_tokens, device=style.device)
                cond = cond + self.style(style + first_row)
        return cond

    def draw_style(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor | None:
        """Uniform style indices [count, S] int64 on `device`, drawn on the generator's; None without codebooks."""
        if self.style is None:
            return None
        source = device if generator is None else generator.device
        shape = (count, self.style_tokens)
        return torch.randint(self.style_codes, shape, generator=generator, device=source).to(device)

    def check(self, labels: Tensor, alpha: Tensor, style: Tensor | None) -> None:
        """Refuse wrong shapes and types anywhere, wrong values on the CPU only: elsewhere that means a wait.

        Raises:
            ValueError: naming the argument, with the expected and the given shape or value.
        """
        check_condition(labels, alpha, self.num_classes)
        if style is not None:
            if style.shape != (len(labels), self.style_tokens) or style.dtype != torch.int64:
                expected = f"[{len(labels)}, {self.style_tokens}] int64"
                raise ValueError(f"style must be {expected} or None to draw it, got {tuple(style.shape)} {style.dtype}")
            _check_indices("style", style, self.style_codes)


def check_condition(labels: Tensor, alpha: Tensor, num_classes: int) -> None:
    """Refuse labels [K] and guidance scales [K] of wrong shape or type, and on the CPU wrong values.

    Raises:
        ValueError: naming the argument, with the expected and the given shape or value.
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be [K] int64, got {tuple(labels.shape)} {labels.dtype}")
    if alpha.shape != labels.shape or not alpha.is_floating_point():
        raise ValueError(f"alpha must be [{len(labels)}] float to match labels, got {tuple(alpha.shape)} {alpha.dtype}")
    _check_indices("labels", labels, num_classes)
    if torch.compiler.is_compiling() or alpha.device.type != "cpu":
        return
    if not bool((alpha.isfinite() & (alpha >= 1)).all()):
        raise ValueError(
            f"alpha must be finite and >= 1 (1 is no guidance), got values in [{alpha.min()}, {alpha.max()}]"
        )


def _check_indices(name: str, indices: Tensor, size: int) -> None:
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or not indices.numel():
        return
    if not 0 <= int(indices.min()) <= int(indices.max()) < size:
        span = f"[{int(indices.min())}, {int(indices.max())}]"
        raise ValueError(f"{name} must lie in 0..{size - 1}, got values in {span}")
