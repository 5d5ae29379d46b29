"""In which features a generator drifts: the `encoder` section of its configuration.

What the paper uses, by this section:

    latent models (Sec. 5.2)     kind: mae                              86 keys for the released network
    pixel models (Table 9)       kind: mae, also: [convnext]
    Table 3, MoCo-v2, SimCLR     kind: pixels, also: [moco]             of latents through the tokenizer's decoder
    without an encoder           kind: pixels
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domains.imagenet.encoders.combined_features import CombinedFeatures
from domains.imagenet.encoders.convnext_features import ConvNextFeatures
from domains.imagenet.encoders.decoded_features import DecodedFeatures
from domains.imagenet.encoders.imagenet_input import IMAGENET_MEAN, IMAGENET_STD
from domains.imagenet.encoders.mae_features import MaeFeatures
from domains.imagenet.encoders.pixel_features import PixelFeatures
from domains.imagenet.encoders.resnet_features import ResNetFeatures
from domains.imagenet.encoders.resnet_weights import SUFFIXES
from domains.imagenet.mae import MaskedAutoencoder
from domains.imagenet.mae_training import load_mae, missing_mae
from domains.imagenet.missing import Missing
from domains.imagenet.missing_weights import missing_weights
from domains.imagenet.pretrained import NETWORK_FILES
from domains.imagenet.tokenizers import PixelTokenizer, Tokenizer
from drifting.training.config import require
from drifting.training.errors import ConfigError

KINDS = ("pixels", "mae", "convnext", "moco", "simclr")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONVNEXT_FILES = ("config.json", "model.safetensors|pytorch_model.bin")


@dataclass
class ConvNextSection:
    """ConvNeXt-V2 of published weights. `size`: side to which images are resized. `dtype`: float32 as released."""

    path: str = "facebook/convnextv2-base-22k-224"
    revision: str | None = None
    size: int = 224
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require(self.size >= 32, "encoder.convnext.size", "at least 32", self.size)
        require(self.dtype in DTYPES, "encoder.convnext.dtype", f"one of {', '.join(DTYPES)}", self.dtype)


@dataclass
class ResNetSection:
    """A self-supervised ResNet-50. `path`: file, folder or Hub repository; `file`: where that holds several.

    `maps`: by name, empty those that the paper names. `size`: side to which images are resized. `normalized`: the
    network was trained on images normalised by ImageNet's mean and deviation, otherwise on [0, 1].
    """

    path: str = ""
    file: str | None = None
    revision: str | None = None
    maps: list[str] = field(default_factory=list)
    patch_sizes: list[int] = field(default_factory=lambda: [2, 4])
    size: int = 256
    normalized: bool = True

    def __post_init__(self) -> None:
        require(self.size >= 32, "encoder.(moco, simclr).size", "at least 32", self.size)


@dataclass
class EncoderSection:
    """Feature space of the loss. The keys of `kind` keep their names, those of `also` begin with their kind.

    `run`, or `path` (a folder or Hub repository of `convert`): the masked auto-encoder; `maps`, `patch_sizes` and
    `input_norm` are its features. `dtype` of the networks' weights and activations, but for ConvNeXt-V2, which has its
    own; statistics are taken in float32. `recompute`: keep the output of each block alone for the backward pass.
    `decode_chunk`: latents that are decoded at a time for an encoder of images; null is all.
    """

    kind: str = "mae"
    also: list[str] = field(default_factory=list)
    run: str = ""  # run directory of `python -m domains.imagenet.pretrain_mae`
    path: str = ""
    revision: str | None = None
    maps: list[str] = field(default_factory=list)  # encoder maps by name; empty: those of the released code
    patch_sizes: list[int] = field(default_factory=lambda: [2, 4])
    input_norm: bool = True
    pixel_patches: list[int] = field(default_factory=list)  # sides of patches that `pixels` also compares
    dtype: str = "float32"
    recompute: bool = False
    decode_chunk: int | None = None
    convnext: ConvNextSection = field(default_factory=ConvNextSection)
    moco: ResNetSection = field(default_factory=ResNetSection)
    simclr: ResNetSection = field(default_factory=lambda: ResNetSection(normalized=False))

    def __post_init__(self) -> None:
        known = f"one of {', '.join(KINDS)}"
        require(self.kind in KINDS, "encoder.kind", known, self.kind)
        others = [self.kind, *self.also]
        valid = all(kind in KINDS for kind in self.also) and len(set(others)) == len(others)
        require(valid, "encoder.also", f"kinds other than encoder.kind={self.kind}, each {known}", self.also)
        if "mae" in others:
            expected = "the run directory of a pre-trained auto-encoder, or encoder.path its weights, and not both"
            require((self.run == "") != (self.path == ""), "encoder.run", expected, self.run)
        for name in ("moco", "simclr"):
            given = name not in others or getattr(self, name).path != ""
            require(given, f"encoder.{name}.path", "a file, a folder or a Hub repository of its weights", "")
        require(self.dtype in DTYPES, "encoder.dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        unused = not self.pixel_patches or "pixels" in others
        require(
            unused, "encoder.pixel_patches", "empty where encoder.kind and .also have no pixels", self.pixel_patches
        )
        chunk = self.decode_chunk is None or self.decode_chunk >= 1
        require(chunk, "encoder.decode_chunk", "at least 1, or null for all", self.decode_chunk)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All of them."""
        return (self.kind, *self.also)


def missing_encoder(section: EncoderSection) -> list[Missing]:
    """Run directories and weights that are not on this machine; nothing is loaded or downloaded."""
    missing: list[Missing] = []
    if "mae" in section.kinds and section.run:
        missing += missing_mae(Path(section.run))
    elif "mae" in section.kinds:
        missing += missing_weights(
            "encoder.path",
            section.path,
            files=NETWORK_FILES,
            revision=section.revision,
            command=f"python -m domains.imagenet.convert source=Goodeat/drifting/{Path(section.path).name} "
            f"out={section.path} encoder_only=true",
        )
    if "convnext" in section.kinds:
        where = section.convnext
        missing += missing_weights("encoder.convnext.path", where.path, files=CONVNEXT_FILES, revision=where.revision)
    for name in ("moco", "simclr"):
        resnet: ResNetSection = getattr(section, name)
        if name in section.kinds and not Path(resnet.path).expanduser().is_file():
            files = (resnet.file or "|".join(f"*{suffix}" for suffix in SUFFIXES),)
            missing += missing_weights(f"encoder.{name}.path", resnet.path, files=files, revision=resnet.revision)
    return missing


def build_encoder(
    section: EncoderSection, sample_shape: tuple[int, int, int], tokenizer: Tokenizer | None = None
) -> nn.Module:
    """Samples [K, C, H, W] -> {key: [K, F, D]}, frozen, on the CPU.

    Args:
        section: which encoders.
        sample_shape: C, H, W of what the generator makes.
        tokenizer: of a latent generator, for encoders of images; None or one of pixels: samples are images.

    Raises:
        ConfigError: an encoder that cannot take such samples, or maps or patch sizes that it does not have.
        TrainingError: a pre-training run that is not there or not finished, weights that do not fit.
    """
    encoders = {
        ("" if kind == section.kind else kind): _build(kind, section, sample_shape, tokenizer) for kind in section.kinds
    }
    return encoders[""] if len(encoders) == 1 else CombinedFeatures(encoders)


def _build(kind: str, section: EncoderSection, shape: tuple[int, int, int], tokenizer: Tokenizer | None) -> nn.Module:
    if kind == "pixels":
        return _pixels(section.pixel_patches, shape)
    options = {"dtype": DTYPES[section.dtype], "checkpoint": section.recompute}
    if kind == "mae":
        return _mae(section, shape, options)
    latent = tokenizer is not None and not isinstance(tokenizer, PixelTokenizer)
    if not latent and shape[0] != 3:
        raise ConfigError(
            f"encoder {kind} sees RGB images, the samples are {' x '.join(map(str, shape))}: latents need a tokenizer "
            "(tokenizer.kind) that decodes them"
        )
    if kind == "convnext":
        where = section.convnext
        encoder: nn.Module = ConvNextFeatures.from_pretrained(
            where.path, revision=where.revision, size=where.size, **options | {"dtype": DTYPES[where.dtype]}
        )
    else:
        encoder = _resnet(kind, getattr(section, kind), options)
    if not latent:
        return encoder
    return DecodedFeatures(tokenizer, encoder, chunk=section.decode_chunk, checkpoint=section.recompute)


def _pixels(patches: list[int], shape: tuple[int, int, int]) -> PixelFeatures:
    try:
        encoder = PixelFeatures(patches)
        encoder(torch.zeros(1, *shape, device="meta"))
    except ValueError as error:
        raise ConfigError(f"encoder.pixel_patches: {error}") from error
    return encoder


def _mae(section: EncoderSection, shape: tuple[int, int, int], options: dict[str, Any]) -> MaeFeatures:
    if section.run:
        mae = load_mae(Path(section.run))
    else:
        mae = MaskedAutoencoder.from_pretrained(section.path, revision=section.revision, setting="encoder.path")
    chosen = {"maps": section.maps or None, "patch_sizes": section.patch_sizes, "input_norm": section.input_norm}

    try:  # without memory or work: the released network has 2.1 billion parameters
        skeleton = MaskedAutoencoder.skeleton(mae.cfg, "mae_encoder")
        MaeFeatures(skeleton, **chosen)(torch.zeros(1, *shape, device="meta"))
    except ValueError as error:
        raise ConfigError(f"encoder.maps or encoder.patch_sizes: {error}") from error
    return MaeFeatures(mae, **chosen, **options)


def _resnet(kind: str, section: ResNetSection, options: dict[str, Any]) -> ResNetFeatures:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if section.normalized else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    chosen = {"maps": section.maps or None, "patch_sizes": section.patch_sizes, "size": section.size}
    where = {"file": section.file, "revision": section.revision}
    try:
        encoder = ResNetFeatures.from_pretrained(section.path, **where, **chosen, mean=mean, std=std, **options)
        with torch.no_grad():
            encoder(torch.zeros(1, 3, section.size, section.size))
    except ValueError as error:
        raise ConfigError(f"encoder.{kind}.maps, .patch_sizes or .size: {error}") from error
    return encoder
