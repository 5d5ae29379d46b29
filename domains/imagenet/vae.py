"""Tokenizers: images to the latents in which a generator works, and back (paper Sec. 4: the Stable Diffusion VAE).

Shapes: K samples, images [K, 3, H, W] in [-1, 1], latents [K, c, H / r, W / r]; c = 4, r = 8 for Stable Diffusion.
A new kind is a subclass of `Tokenizer` and a line in `load_tokenizer`.
"""

import json
import os
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from domains.imagenet.frozen import FrozenModule, freeze, weight_dtype
from domains.imagenet.hub import WeightsError, load_complete, local_folder
from domains.imagenet.transformer import at_least_float32

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SD_VAE = "stabilityai/sd-vae-ft-mse"
KINDS = ("sd_kl", "none")


class Tokenizer(FrozenModule):
    """Frozen, differentiable both ways. `channels` is c of the latents, `downscale` r the ratio of the sides."""

    channels: int
    downscale: int

    @abstractmethod
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [K, 3, H, W] -> scaled latents [K, c, H / r, W / r], float32.

        A posterior is sampled with `generator`; without one its mean is taken.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [K, c, h, w] -> images [K, 3, r h, r w], float32, not clipped to [-1, 1]."""


class PixelTokenizer(Tokenizer):
    """The images are the latents: pixel generators."""

    channels = 3
    downscale = 1

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images."""
        return _checked("images", images, 3)

    def decode(self, latents: Tensor) -> Tensor:
        """The latents."""
        return _checked("latents", latents, 3)


class KlTokenizer(Tokenizer):
    """A variational autoencoder of the diffusers library; taken over, not copied.

    Args:
        autoencoder: gives each image a Gaussian posterior over latents.
        scale: factor from its latents to those of the generator, to about unit variance; None is that of its
            configuration (0.18215 for Stable Diffusion).
        dtype: of weights and activations; None leaves the weights as they are.

    Raises:
        ValueError: a scale that is not positive, or an autoencoder that shifts or standardises its latents: other
            latents than scale * z.
    """

    def __init__(
        self, autoencoder: "AutoencoderKL", *, scale: float | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        config = autoencoder.config
        if shifted := [key for key in ("shift_factor", "latents_mean", "latents_std") if config.get(key) is not None]:
            raise ValueError(f"autoencoder must have latents that are only scaled, got one with {', '.join(shifted)}")
        self.scale = float(config["scaling_factor"] if scale is None else scale)
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive, got {scale}")
        self.channels = int(config["latent_channels"])
        self.downscale = 2 ** (len(config["block_out_channels"]) - 1)
        self.autoencoder: AutoencoderKL = freeze(autoencoder, dtype)
        self.eval()

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior, not scaled, what a cache of latents holds: [K, 2 c, h, w], float32.

        The log-variance lies in [-30, 20], so that half precision holds it.
        """
        _checked("images", images, 3, self.downscale)
        encoded = self.autoencoder.encode(images.to(weight_dtype(self.autoencoder))).latent_dist
        return at_least_float32(torch.cat((encoded.mean, encoded.logvar), dim=1))

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the posterior, its mean without a generator, times the scale; [K, 2 c, h, w] -> [K, c, h, w]."""
        mean, log_variance = at_least_float32(_checked("moments", moments, 2 * self.channels)).chunk(2, dim=1)
        if generator is None:
            return self.scale * mean
        noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
        return self.scale * (mean + (log_variance / 2).exp() * noise.to(mean.device))

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [K, 3, H, W] -> scaled latents [K, c, H / r, W / r], float32: a sample, or the mean without generator.

        Raises:
            ValueError: another number of channels, or sides that r does not divide.
        """
        return self.latents(self.moments(images), generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [K, c, h, w] -> images [K, 3, r h, r w], float32, not clipped to [-1, 1].

        Raises:
            ValueError: another number of channels.
        """
        latents = _checked("latents", latents, self.channels) / self.scale
        return at_least_float32(self.autoencoder.decode(latents.to(weight_dtype(self.autoencoder))).sample)


def load_tokenizer(
    kind: str = "sd_kl",
    path: str | os.PathLike[str] = SD_VAE,
    *,
    revision: str | None = None,
    scale: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tokenizer:
    """The tokenizer of a configuration.

    Args:
        kind: `sd_kl`, an AutoencoderKL as diffusers stores it; `none`, the pixels themselves.
        path: a folder, or the id of a Hub repository; no effect for `none`.
        revision: of the repository.
        scale: see `KlTokenizer`.
        dtype: see `KlTokenizer`.

    Raises:
        ValueError: another kind.
        WeightsError: the files are not to be had, or are those of another network.
    """
    if kind not in KINDS:
        raise ValueError(f"vae.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "none":
        return PixelTokenizer()
    from diffusers import AutoencoderKL  # some seconds, which pixel models need not wait for

    files = ("config.json", "diffusion_pytorch_model.safetensors")
    folder = local_folder(path, files=files, revision=revision, setting="vae.path")
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name != "AutoencoderKL":
        raise WeightsError(f"vae.path={path} must hold an AutoencoderKL of diffusers, got {name}")
    # Without `low_cpu_mem_usage` it does not ask for another package.
    autoencoder = load_complete(AutoencoderKL.from_pretrained, folder, setting="vae.path", low_cpu_mem_usage=False)
    return KlTokenizer(autoencoder, scale=scale, dtype=dtype)


def _checked(name: str, x: Tensor, channels: int, multiple: int = 1) -> Tensor:
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        sides = f", sides divisible by {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name} must be [K, {channels}, H, W]{sides}, got shape {tuple(x.shape)}")
    return x
