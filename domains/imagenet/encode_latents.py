"""An image folder into a store of latents: the posterior of every image and of its mirror image, encoded once.

    python -m domains.imagenet.encode_latents folder=imagenet/train size=256 out=latents.zarr classes=1000
    python -m domains.imagenet.encode_latents folder=imagenette/train tokenizer.kind=taef2 size=128 out=small.zarr
    torchrun --nproc-per-node=8 -m domains.imagenet.encode_latents folder=imagenet/train out=latents.zarr batch=128

The tokenizer is Stable Diffusion's unless `tokenizer` says otherwise; tokenizer.dtype=bfloat16 encodes in half
precision. Every image is decoded once before, and damaged ones are listed. The same command goes on after it was
stopped, on any number of ranks; on a finished store it compares every chunk with its checksum and makes anew what
differs.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.imagenet.config import CONFIGS
from domains.imagenet.data.folder_to_store import checked_folder, source_attributes, write_samples
from domains.imagenet.data.image_data import to_float
from domains.imagenet.data.image_folder import ImageFolder, missing_image_folder
from domains.imagenet.data.latent_store import ARRAY, ORIENTATIONS, latent_samples
from domains.imagenet.data.store_writer import StorePlan, StoreWriter
from domains.imagenet.missing import refuse_missing
from domains.imagenet.tokenizers import LatentTokenizer, TinyTokenizer, TokenizerSection, missing_tokenizer
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.errors import ConfigError
from drifting.training.launch import device_of
from drifting.training.launcher import read_placement


@dataclass
class EncodeLatentsConfig:
    """What to encode, and by what. `folder`: of class folders; `size`: side of the centre crop; `out`: .../name.zarr.

    `batch`: images at a time. `device`: auto, cpu or cuda, one device for each rank. `classes`: how many there must be
    (1000 for ImageNet), null for any number. `chunk`: images in a chunk, null for those that make 32 MB, at most 2048.
    `workers`: threads that decode. `skip_damaged` leaves damaged images out.
    """

    folder: str
    out: str
    size: int = 256
    tokenizer: TokenizerSection = field(default_factory=lambda: TokenizerSection(kind="sd_kl"))
    batch: int = 32
    device: str = "auto"
    classes: int | None = None
    chunk: int | None = None
    workers: int = 4
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        require(self.folder != "", "folder", "a folder of class folders", self.folder)
        require(self.out != "", "out", "the store to write", self.out)
        require(self.size >= 1, "size", "at least 1", self.size)
        expected = "sd_kl, small_kl or taef2 (pixels need no encoding: domains.imagenet.pack_images)"
        require(self.tokenizer.kind != "none", "tokenizer.kind", expected, self.tokenizer.kind)
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda", self.device)
        require(self.classes is None or self.classes >= 1, "classes", "at least 1, or null", self.classes)
        require(self.chunk is None or self.chunk >= 1, "chunk", "at least 1, or null", self.chunk)
        require(self.workers >= 1, "workers", "at least 1", self.workers)


@command(EncodeLatentsConfig, "imagenet_encode_latents", configs=CONFIGS)
def main(config: EncodeLatentsConfig) -> None:
    """Check, encode, and say what is in the store."""
    refuse_missing([*missing_image_folder(config.folder, "folder"), *missing_tokenizer(config.tokenizer)])
    placement, out = read_placement(os.environ), Path(config.out).expanduser()
    device = device_of(config.device, placement, "device")
    folder = ImageFolder(config.folder, size=config.size, expected_classes=config.classes, threads=config.workers)
    tokenizer = config.tokenizer.build()
    assert isinstance(tokenizer, LatentTokenizer)  # the section refused the other one
    if config.size % tokenizer.downscale:
        raise ConfigError(f"size must be divisible by {tokenizer.downscale} for this tokenizer, got {config.size}")
    images = checked_folder(folder, out, skip_damaged=config.skip_damaged, placement=placement)
    encoder = Encoder(tokenizer.to(device), device)
    plan = StorePlan(
        array=ARRAY,
        shape=encoder.stored_shape(config.size),
        dtype="float16",
        labels=images.labels.numpy(),
        attributes=source_attributes(folder, images) | encoder.attributes(config.tokenizer.dtype),
        command=shlex.join(["python", "-m", "domains.imagenet.encode_latents", *sys.argv[1:]]),
        chunk=config.chunk,
    )
    writer = StoreWriter(out, plan)
    new = write_samples(writer, images.read, encoder, batch=config.batch, placement=placement, doing="encoding")
    state = "complete" if writer.finish() else "waits for other ranks"
    print(f"{new} images encoded now, {len(images)} of {len(images.classes)} classes in all: {out} {state}")


class Encoder:
    """Images [n, 3, S, S] uint8 -> what a store of latents keeps of them, [n, 2, 2 c, h, w] float16."""

    def __init__(self, tokenizer: LatentTokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.has_posterior = not isinstance(tokenizer, TinyTokenizer)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[Any]:
        """Both orientations."""
        pixels = to_float(images.to(self.device))
        moments, flipped = self.tokenizer.moments(pixels), self.tokenizer.moments(pixels.flip(-1))
        return latent_samples(moments, flipped, has_posterior=self.has_posterior)

    def stored_shape(self, size: int) -> tuple[int, int, int, int]:
        """2, 2 c (c without a posterior), h, w."""
        channels, side = self.tokenizer.channels, size // self.tokenizer.downscale
        return ORIENTATIONS, (1 + self.has_posterior) * channels, side, side

    def attributes(self, dtype: str) -> dict[str, Any]:
        """What a store says of the tokenizer."""
        identity = self.tokenizer.identity
        return {
            "tokenizer": {"kind": identity.kind, "path": identity.path, "sha256": identity.sha256, "dtype": dtype},
            "scale": self.tokenizer.scale,
            "shift": self.tokenizer.shift,
            "posterior": self.has_posterior,
            "scaled": False,
        }


if __name__ == "__main__":
    main()
