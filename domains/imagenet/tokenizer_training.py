"""The settings of `python -m domains.imagenet.train_tokenizer`."""

from dataclasses import asdict, dataclass, field
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
    from domains.imagenet.tokenizers.small_kl import SmallKl


@dataclass
class AutoencoderSection:
    """Shape of the autoencoder, see `SmallKl`: `patch` is the ratio of the sides of images and latents."""

    latent_channels: int = 4
    patch: int = 4
    width: int = 64
    blocks: int = 3

    def __post_init__(self) -> None:
        for name in ("latent_channels", "patch", "width", "blocks"):
            require(getattr(self, name) >= 1, f"autoencoder.{name}", "at least 1", getattr(self, name))

    def build(self) -> "SmallKl":
        """The autoencoder with fresh weights."""
        from domains.imagenet.tokenizers.small_kl import SmallKl  # some seconds, for diffusers

        return SmallKl(**asdict(self))


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
        step = self.autoencoder.patch
        require(self.crop >= 0 and self.crop % step == 0, "crop", f"a multiple of {step}, or 0 for none", self.crop)
        require(self.edge_weight >= 0, "edge_weight", "at least 0", self.edge_weight)
        require(self.kl_weight >= 0, "kl_weight", "at least 0", self.kl_weight)
