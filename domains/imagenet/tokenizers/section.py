"""Which tokenizer a command uses: the `tokenizer` section of its configuration."""

import math
import os
from dataclasses import dataclass

import torch

from domains.imagenet.missing import Missing
from domains.imagenet.missing_weights import missing_weights
from domains.imagenet.tokenizers.kl import KL_FILES, KlTokenizer, load_kl
from domains.imagenet.tokenizers.taef2 import TAEF2_FILES, TinyTokenizer, load_taef2
from domains.imagenet.tokenizers.tokenizer import PixelTokenizer, Tokenizer
from drifting.training.config import require

SD_VAE = "stabilityai/sd-vae-ft-mse"
DEFAULT_PATHS = {"sd_kl": SD_VAE, "small_kl": "runs/tokenizer/tokenizer", "taef2": "weights/taef2", "none": ""}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMMANDS = {  # what gets the weights that are not on the Hub
    "small_kl": "python -m domains.imagenet.train_tokenizer data.kind=pixels data.path=IMAGES",
    "taef2": "curl -L --create-dirs --output-dir weights/taef2 --remote-name-all "
    "https://github.com/madebyollin/taesd/raw/main/taef2_{encoder,decoder}.pth",
}


@dataclass
class TokenizerSection:
    """An autoencoder between images and latents; latent = (z - shift) scale.

    `kind`: "sd_kl" an AutoencoderKL of diffusers, "small_kl" one that `train_tokenizer` made, "taef2", or "none": the
    generator works on pixels. `path`: a folder, or the id of a Hub repository; "" is the usual one of its kind.
    `scale` and `shift`: null are those that come with the weights.
    """

    kind: str = "none"
    path: str = ""
    revision: str | None = None
    scale: float | None = None
    shift: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require(self.kind in DEFAULT_PATHS, "tokenizer.kind", f"one of {', '.join(DEFAULT_PATHS)}", self.kind)
        require(self.dtype in DTYPES, "tokenizer.dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        positive = self.scale is None or 0 < self.scale < math.inf
        require(positive, "tokenizer.scale", "positive, or null for that of the weights", self.scale)
        finite = self.shift is None or math.isfinite(self.shift)
        require(finite, "tokenizer.shift", "finite, or null for that of the weights", self.shift)

    def build(self) -> Tokenizer:
        """The tokenizer, on the CPU.

        Raises:
            WeightsError: the files are not to be had, or are those of another network.
        """
        dtype = DTYPES[self.dtype]
        return load_tokenizer(
            self.kind, self.path, revision=self.revision, scale=self.scale, shift=self.shift, dtype=dtype
        )


def missing_tokenizer(section: TokenizerSection, setting: str = "tokenizer") -> list[Missing]:
    """The weights, unless they lie in a folder or the Hub's local cache; nothing is loaded or downloaded."""
    if section.kind == "none":
        return []
    path = section.path or DEFAULT_PATHS[section.kind]
    return missing_weights(
        f"{setting}.path",
        path,
        files=TAEF2_FILES if section.kind == "taef2" else KL_FILES,
        revision=section.revision,
        command=COMMANDS.get(section.kind),
    )


def load_tokenizer(
    kind: str = "sd_kl",
    path: str | os.PathLike[str] = "",
    *,
    revision: str | None = None,
    scale: float | None = None,
    shift: float | None = None,
    dtype: torch.dtype | None = None,
    setting: str = "tokenizer",
) -> Tokenizer:
    """A tokenizer, on the CPU.

    Args:
        kind: `sd_kl` or `small_kl`, an AutoencoderKL as diffusers stores it; `taef2`; `none`, the pixels themselves.
        path: a folder, or the id of a Hub repository; "" is the usual one of its kind. No effect for `none`.
        revision: of the repository.
        scale: latent = (z - shift) scale; None is that of the weights.
        shift: as the scale.
        dtype: of weights and activations; None leaves the weights as they are.
        setting: name of the configuration's section, for messages.

    Raises:
        ValueError: another kind.
        WeightsError: the files are not to be had, or are those of another network.
    """
    if kind not in DEFAULT_PATHS:
        raise ValueError(f"{setting}.kind must be one of {', '.join(DEFAULT_PATHS)}, got {kind!r}")
    if kind == "none":
        return PixelTokenizer()
    path = os.fspath(path) or DEFAULT_PATHS[kind]
    if kind == "taef2":
        tiny = load_taef2(path, revision=revision, setting=f"{setting}.path")
        return TinyTokenizer(tiny, scale=scale, shift=shift, dtype=dtype).found_at(path)
    autoencoder = load_kl(path, revision=revision, setting=f"{setting}.path")
    return KlTokenizer(autoencoder, scale=scale, shift=shift, dtype=dtype, kind=kind).found_at(path)
