"""The settings of `python -m domains.imagenet.train_tokenizer`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from domains.imagenet.data.section import DataSection
from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    require,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass
class AutoencoderSection:
    """Shape of the autoencoder. `widths`: channels per resolution, which halves between them; `layers`: blocks each."""

    widths: list[int] = field(default_factory=lambda: [16, 32, 64])
    layers: int = 1
    latent_channels: int = 4
    groups: int = 8  # of every norm

    def __post_init__(self) -> None:
        divided = len(self.widths) > 0 and all(width >= 1 and width % self.groups == 0 for width in self.widths)
        require(divided, "autoencoder.widths", f"one or more multiples of groups = {self.groups}", self.widths)
        require(self.layers >= 1, "autoencoder.layers", "at least 1", self.layers)
        require(self.latent_channels >= 1, "autoencoder.latent_channels", "at least 1", self.latent_channels)

    @property
    def downscale(self) -> int:
        """Ratio of the sides of images and latents."""
        return int(2 ** (len(self.widths) - 1))

    def build(self) -> "AutoencoderKL":
        """The autoencoder with fresh weights; no attention, so that it takes crops and images of any size alike."""
        from diffusers import AutoencoderKL

        stages = len(self.widths)
        return AutoencoderKL(
            block_out_channels=tuple(self.widths),
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            mid_block_add_attention=False,
        )


@dataclass
class TokenizerEvalSection:
    """Held-out PSNR of `images` images every `every` steps and at the end; 0: at the end alone."""

    every: int = 0
    images: int = 500
    batch: int = 50

    def __post_init__(self) -> None:
        require(self.every >= 0, "eval.every", "at least 1, or 0 for the end alone", self.every)
        require(self.images >= 1, "eval.images", "at least 1", self.images)
        require(self.batch >= 1, "eval.batch", "at least 1", self.batch)


@dataclass
class TokenizerTrainingConfig:
    """Everything that `python -m domains.imagenet.train_tokenizer` needs.

    `crop`: side of the random squares of each image that are trained on, 0 for whole images; the network is
    convolutional, and small squares show it more images in the same time.
    """

    run: RunConfig
    data: DataSection = field(default_factory=DataSection)
    autoencoder: AutoencoderSection = field(default_factory=AutoencoderSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: TokenizerEvalSection = field(default_factory=TokenizerEvalSection)
    batch: int = 16
    crop: int = 32
    edge_weight: float = 0.5
    kl_weight: float = 1e-3

    def __post_init__(self) -> None:
        images = self.data.kind in ("folder", "pixels")
        require(images, "data.kind", "folder or pixels (RGB images)", self.data.kind)
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        step = self.autoencoder.downscale
        require(self.crop >= 0 and self.crop % step == 0, "crop", f"a multiple of {step}, or 0 for none", self.crop)
        require(self.edge_weight >= 0, "edge_weight", "at least 0", self.edge_weight)
        require(self.kl_weight >= 0, "kl_weight", "at least 0", self.kl_weight)
