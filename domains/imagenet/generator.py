"""One-step image generator: a transformer that maps noise to a sample in a single pass (paper A.2).

    x = f(noise, label, alpha, style)        noise and x [K, C, H, W]

Patches of the noise become tokens; context tokens made from the condition vector are put in front of them, take part
in every block and are dropped at the end. The final layer starts at zero, so a new generator returns exactly zero.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domains.imagenet.conditioning import TABLE_STD, Conditioning
from domains.imagenet.pretrained import Pretrained
from domains.imagenet.transformer import Block, FinalLayer, LayerNorm, Modulation, RMSNorm, rotary_table
from drifting.training.config import require


@dataclass
class GeneratorConfig:
    """Shape of a generator; the defaults are the paper's B/2 on 32 x 32 x 4 latents. Refuses what cannot be built."""

    channels: int = 4
    size: int = 32  # height and width of noise and output
    patch: int = 2
    hidden: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    context_tokens: int = 16
    style_tokens: int = 32  # codebooks; 0 switches the style noise off
    style_codes: int = 64  # entries per codebook
    rms_norm: bool = True  # False: layer norm
    swiglu: bool = True  # False: GELU
    qk_norm: bool = True
    rotary: bool = True
    attention_float32: bool = False  # under autocast: attention itself in float32
    checkpoint_blocks: bool = False  # recompute blocks in the backward pass: less memory, more time
    output_range: tuple[float, float] | None = None  # clamp with a straight-through gradient

    def __post_init__(self) -> None:
        for name in ("channels", "size", "patch", "hidden", "depth", "heads", "num_classes", "style_codes"):
            require(getattr(self, name) >= 1, f"generator.{name}", "at least 1", getattr(self, name))
        for name in ("context_tokens", "style_tokens"):
            require(getattr(self, name) >= 0, f"generator.{name}", "at least 0", getattr(self, name))
        whole = self.size % self.patch == 0
        require(whole, "generator.patch", f"a divisor of generator.size={self.size}", self.patch)
        expected = f"a multiple of 2 * heads = {2 * self.heads}"
        require(self.hidden % (2 * self.heads) == 0, "generator.hidden", expected, self.hidden)
        require(self.hidden % 4 == 0, "generator.hidden", "a multiple of 4 (sin-cos positions)", self.hidden)
        require(self.mlp_ratio > 0, "generator.mlp_ratio", "above 0", self.mlp_ratio)
        if self.output_range is not None:
            ordered = len(self.output_range) == 2 and self.output_range[0] < self.output_range[1]
            require(ordered, "generator.output_range", "(low, high), low < high", self.output_range)
            self.output_range = (float(self.output_range[0]), float(self.output_range[1]))


TRANSFORMERS = {"B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # hidden, depth, heads


def generator_preset(name: str) -> GeneratorConfig:
    """A new config of the paper: B/2 or L/2 (32 x 32 x 4 latents), B/16 or L/16 (256 x 256 x 3 pixels).

    XL/2 and XL/16 are not in the paper: they are the usual next size of diffusion transformers.

    Raises:
        ValueError: another name.
    """
    known = [f"{size}/{patch}" for size in TRANSFORMERS for patch in (2, 16)]
    if name not in known:
        raise ValueError(f"generator preset must be one of {known}, got {name!r}")
    size, patch = name.split("/")
    hidden, depth, heads = TRANSFORMERS[size]
    latent = GeneratorConfig(hidden=hidden, depth=depth, heads=heads)
    if patch == "2":
        return latent
    return replace(latent, channels=3, size=256, patch=16, attention_float32=True, checkpoint_blocks=True)


class DiTGenerator(Pretrained):
    """Noise, label, guidance scale and style to a sample, in one pass."""

    config_type = GeneratorConfig
    kinds: ClassVar = {"generator": {}}

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        patch_values = cfg.channels * cfg.patch**2
        self.conditioning = Conditioning(cfg.hidden, cfg.num_classes, cfg.style_tokens, cfg.style_codes)
        self.patch_embed = nn.Linear(patch_values, cfg.hidden)
        self.position = nn.Parameter(torch.empty((cfg.size // cfg.patch) ** 2, cfg.hidden))
        if cfg.context_tokens:
            self.context_linear = nn.Linear(cfg.hidden, cfg.hidden)
            self.context_embed = nn.Parameter(torch.empty(cfg.context_tokens, cfg.hidden))
        self.blocks = nn.ModuleList(
            Block(
                cfg.hidden,
                cfg.heads,
                mlp_ratio=cfg.mlp_ratio,
                rms=cfg.rms_norm,
                swiglu=cfg.swiglu,
                qk_norm=cfg.qk_norm,
                attention_float32=cfg.attention_float32,
            )
            for _ in range(cfg.depth)
        )
        self.final = FinalLayer(cfg.hidden, patch_values, cfg.rms_norm)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter anew, as at the start of training; also what follows construction on the meta device."""
        if self.position.is_meta:  # has no values yet, and torch takes seconds to work that out
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                nn.init.normal_(module.weight, std=TABLE_STD, generator=generator)
            elif isinstance(module, (RMSNorm, LayerNorm)) and module.weight is not None:
                nn.init.ones_(module.weight)
                if isinstance(module, LayerNorm) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.conditioning.alpha_in, self.conditioning.alpha_out):
            nn.init.normal_(linear.weight, std=TABLE_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.final.linear.weight)
        self.position.copy_(sincos_positions(self.cfg.size // self.cfg.patch, self.cfg.hidden))
        if self.cfg.context_tokens:
            nn.init.normal_(self.context_embed, std=TABLE_STD, generator=generator)

    def forward(
        self,
        noise: Tensor,
        labels: Tensor,
        alpha: Tensor,
        style: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One sample per noise.

        Args:
            noise: [K, C, H, W], standard normal, in the shape of the output.
            labels: [K] int64, class of each sample.
            alpha: [K] float, guidance scale of each sample; 1 is no guidance.
            style: [K, style_tokens] int64 codebook entries; None draws them uniformly.
            generator: source of that draw; on its own device, so that a CPU generator gives the same styles everywhere.

        Returns:
            [K, C, H, W] samples, float32 under autocast as well.

        Raises:
            ValueError: a shape or dtype does not fit; on the CPU also a label, style index or alpha outside its range.
        """
        cfg = self.cfg
        if noise.ndim != 4 or noise.shape[1:] != (cfg.channels, cfg.size, cfg.size):
            expected = f"[K, {cfg.channels}, {cfg.size}, {cfg.size}]"
            raise ValueError(f"noise must be {expected}, the shape of the output, got {tuple(noise.shape)}")
        if labels.shape[:1] != noise.shape[:1]:
            raise ValueError(f"labels must be [{noise.shape[0]}] to match noise, got {tuple(labels.shape)}")
        self.conditioning.check(labels, alpha, style)
        if style is None:
            style = self.conditioning.draw_style(labels.shape[0], labels.device, generator)

        cond = self.conditioning(labels, alpha, style)
        patches = rearrange(noise, "k c (h p) (w q) -> k (h w) (p q c)", p=cfg.patch, q=cfg.patch)
        tokens = self.patch_embed(patches) + self.position
        if cfg.context_tokens:
            tokens = torch.cat([self.context_linear(cond)[:, None] + self.context_embed, tokens], dim=1)
        rotary = rotary_table(tokens.shape[1], cfg.hidden // cfg.heads, noise.device) if cfg.rotary else None
        for block in self.blocks:
            if cfg.checkpoint_blocks and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, cond, rotary, use_reentrant=False)
            else:
                tokens = block(tokens, cond, rotary)
        patches = self.final(tokens[:, cfg.context_tokens :], cond)
        shape = {"h": cfg.size // cfg.patch, "p": cfg.patch, "q": cfg.patch}
        samples = rearrange(patches, "k (h w) (p q c) -> k c (h p) (w q)", **shape)
        samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
        return samples if cfg.output_range is None else straight_through_clamp(samples, *cfg.output_range)


def straight_through_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """min(max(x, low), high) whose gradient is that of the identity, so that a saturated value can still move back.

    For data that sit exactly at a bound, such as the black of handwritten digits. x of any shape -> the same shape.
    """
    return x.clamp(low, high).detach() + (x - x.detach())


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D positions [side^2, width], row-major; the first half encodes the column, the second the row."""
    rate = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)
    column, row = axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)
    return torch.cat([column, row], dim=-1).float()
