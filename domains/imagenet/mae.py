"""Masked auto-encoder whose encoder supplies the features of the drifting loss (paper A.3).

Square patches of the image are hidden (set to zero), each independently with the same probability; the network
reconstructs the image and the loss is the squared error on hidden positions, summed over channels. A classification
head can be trained beside it: loss = (1 - w) reconstruction + w cross-entropy.

Shapes: K samples, input [K, C, H, W]; with space-to-depth s the network sees [K, s^2 C, H/s, W/s], the "grid".
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from domains.imagenet.mae_decoder import MaeDecoder
from domains.imagenet.mae_encoder import ResNetEncoder
from domains.imagenet.pretrained import Pretrained


@dataclass
class MaeConfig:
    """Shape of the auto-encoder; the defaults are the paper's ablation model on 32 x 32 x 4 latents."""

    channels: int = 4
    base_channels: int = 256
    blocks: tuple[int, ...] = (3, 4, 6, 3)  # per stage; the resolution halves between stages
    space_to_depth: int = 1  # 8 for 256 x 256 pixels
    max_groups: int = 32
    mask_patch: int = 2  # side of a hidden patch, on the grid
    mask_probability: float = 0.5
    num_classes: int = 0  # 0: no classification head

    def __post_init__(self) -> None:
        self.blocks = tuple(self.blocks)
        for name in ("channels", "base_channels", "space_to_depth", "max_groups", "mask_patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"mae.{name} must be >= 1, got {getattr(self, name)}")
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(
                f"mae.blocks must name at least one block for each of one or more stages, got {self.blocks}"
            )
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mae.mask_probability must lie in (0, 1), got {self.mask_probability}")
        if self.num_classes < 0:
            raise ValueError(f"mae.num_classes must be >= 0, got {self.num_classes}")


@dataclass(frozen=True, slots=True)
class MaeLoss:
    """Losses of each sample; `loss` carries the gradient, the rest is detached."""

    loss: Tensor  # [K]
    reconstruction: Tensor  # [K] squared error per hidden position, summed over channels
    classification: Tensor | None  # [K] cross-entropy, None without labels
    correct: Tensor | None  # [K] bool, the head's first choice is the label


class MaskedAutoencoder(Pretrained):
    """Encoder, decoder and optional classification head; `encoder_only` is what features need: neither of the two."""

    config_type = MaeConfig
    kinds: ClassVar = {"mae": {}, "mae_encoder": {"encoder_only": True}}

    def __init__(self, cfg: MaeConfig, *, encoder_only: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        grid_channels = cfg.channels * cfg.space_to_depth**2
        self.encoder = ResNetEncoder(grid_channels, cfg.base_channels, cfg.blocks, cfg.max_groups)
        stages = len(cfg.blocks)
        decoder = None if encoder_only else MaeDecoder(grid_channels, cfg.base_channels, stages, cfg.max_groups)
        self.decoder = decoder
        self.last_map = f"layer{stages}"
        width = self.encoder.map_widths[self.last_map]
        self.head = nn.Linear(width, cfg.num_classes) if cfg.num_classes and not encoder_only else None
        self.reset_parameters()

    @property
    def kind(self) -> str:
        """What config.json calls this network."""
        return "mae" if self.decoder is not None else "mae_encoder"

    def encoder_alone(self) -> "MaskedAutoencoder":
        """The same network without decoder and head; shares the encoder's parameters."""
        alone = MaskedAutoencoder.skeleton(self.cfg, "mae_encoder")
        alone.encoder = self.encoder
        return alone.train(self.training)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """He initialisation of convolutions (the paper names none), zero biases; also what follows the meta device."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        classification_weight: float = 0.0,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MaeLoss:
        """Loss of reconstructing what the mask hides, and of classifying what it leaves.

        Args:
            images: [K, C, H, W].
            labels: [K] int64, needed only for a classification weight.
            classification_weight: w in [0, 1].
            mask: [K, 1, H/s, W/s] bool, True where hidden; None draws one.
            generator: source of that draw, on its own device.

        Raises:
            ValueError: a shape does not fit, a classification weight without labels or without a head, or no decoder.
        """
        if self.decoder is None:
            raise ValueError("this auto-encoder has its encoder only: it gives features (mae.encoder), no loss")
        if not 0 <= classification_weight <= 1:
            raise ValueError(f"classification_weight must lie in [0, 1], got {classification_weight}")
        if classification_weight and (labels is None or self.head is None):
            missing = "labels" if labels is None else "a head (mae.num_classes = 0)"
            raise ValueError(f"classification_weight = {classification_weight} needs {missing}")
        target = to_grid(images, self.cfg)
        if mask is None:
            mask = random_patch_mask(target, self.cfg.mask_patch, self.cfg.mask_probability, generator)
        elif mask.shape != (len(target), 1, *target.shape[2:]) or mask.dtype != torch.bool:
            expected = f"{(len(target), 1, *target.shape[2:])} bool"
            raise ValueError(f"mask must be {expected}, True where hidden, got {tuple(mask.shape)} {mask.dtype}")

        maps = self.encoder(target.masked_fill(mask, 0.0))
        reconstruction = hidden_error(self.decoder(maps), target, mask)
        loss, classification, correct = reconstruction, None, None
        if labels is not None and self.head is not None:
            logits = self.head(maps[self.last_map].mean((2, 3))).float()
            classification, correct = F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels
            loss = (1 - classification_weight) * reconstruction + classification_weight * classification
            classification = classification.detach()
        return MaeLoss(loss, reconstruction.detach(), classification, correct)


def to_grid(images: Tensor, cfg: MaeConfig) -> Tensor:
    """What the network sees: each s x s square as one position; images [K, C, H, W] -> [K, s^2 C, H/s, W/s], C fastest.

    Raises:
        ValueError: images of another number of channels, or sides that s and the halvings between stages do not divide.
    """
    if images.ndim != 4 or images.shape[1] != cfg.channels:
        raise ValueError(f"images must be [K, {cfg.channels}, H, W], got {tuple(images.shape)}")
    step = cfg.space_to_depth * 2 ** (len(cfg.blocks) - 1)
    if images.shape[2] % step or images.shape[3] % step:
        expected = f"sides divisible by space_to_depth * 2^(stages - 1) = {step}"
        raise ValueError(f"images must have {expected}, got {tuple(images.shape)}")
    return rearrange(images, "k c (h p) (w q) -> k (p q c) h w", p=cfg.space_to_depth, q=cfg.space_to_depth)


def random_patch_mask(grid: Tensor, patch: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide each patch x patch square with `probability`, independently; grid [K, c, h, w] -> [K, 1, h, w] bool.

    Raises:
        ValueError: the patch does not divide the sides of the grid.
    """
    height, width = grid.shape[2:]
    if height % patch or width % patch:
        raise ValueError(f"mask patch {patch} does not divide the {height} x {width} grid")
    device = grid.device if generator is None else generator.device
    draw = torch.rand(len(grid), 1, height // patch, width // patch, generator=generator, device=device)
    return (draw < probability).repeat_interleave(patch, 2).repeat_interleave(patch, 3).to(grid.device)


def hidden_error(reconstruction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error summed over channels, averaged over hidden positions, in float32; zero if nothing is hidden.

    reconstruction and target [K, c, h, w], mask [K, 1, h, w] bool -> [K].
    """
    error = (reconstruction.float() - target.float()).square().sum(1, keepdim=True)
    return (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
