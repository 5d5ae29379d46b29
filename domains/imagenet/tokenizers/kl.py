"""Variational autoencoders as diffusers stores them: that of Stable Diffusion, and those of `train_tokenizer`."""

import json
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from domains.imagenet.frozen import weight_dtype
from domains.imagenet.hub import WeightsError, load_complete, local_folder
from domains.imagenet.tokenizers.tokenizer import LatentTokenizer, checked_shape
from domains.imagenet.transformer import at_least_float32

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from domains.imagenet.tokenizers.small_kl import SmallKl

KL_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


class KlTokenizer(LatentTokenizer):
    """An AutoencoderKL of the diffusers library, or a `SmallKl`; taken over, not copied.

    Args:
        autoencoder: gives each image a Gaussian posterior over latents.
        scale, shift: latent = (z - shift) scale; None are those of its configuration (0.18215 and 0 for Stable
            Diffusion).
        dtype: of weights and activations; None leaves the weights as they are.
        kind: name for the identity, `sd_kl` or `small_kl`.

    Raises:
        ValueError: a scale that is not positive, or an autoencoder that standardises its latents channel by channel.
    """

    autoencoder: "AutoencoderKL | SmallKl"

    def __init__(
        self,
        autoencoder: "AutoencoderKL | SmallKl",
        *,
        scale: float | None = None,
        shift: float | None = None,
        dtype: torch.dtype | None = None,
        kind: str = "sd_kl",
    ) -> None:
        config = autoencoder.config
        if other := [key for key in ("latents_mean", "latents_std") if config.get(key) is not None]:
            raise ValueError(
                f"autoencoder must have one scale and shift for all channels, got one with {', '.join(other)}"
            )
        super().__init__(
            autoencoder,
            kind=kind,
            channels=int(config["latent_channels"]),
            downscale=config.get("patch") or 2 ** (len(config["block_out_channels"]) - 1),
            scale=config["scaling_factor"] if scale is None else scale,
            shift=(config.get("shift_factor") or 0.0) if shift is None else shift,
            dtype=dtype,
        )

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior over z: [K, 3, H, W] -> [K, 2 c, h, w], float32."""
        checked_shape("images", images, 3, self.downscale)
        encoded = self.autoencoder.encode(images.to(weight_dtype(self.autoencoder))).latent_dist
        return at_least_float32(torch.cat((encoded.mean, encoded.logvar), dim=1))

    def decode_unscaled(self, z: Tensor) -> Tensor:
        """z [K, c, h, w] -> images [K, 3, r h, r w], float32."""
        return at_least_float32(self.autoencoder.decode(z.to(weight_dtype(self.autoencoder))).sample)


def load_kl(
    path: str | os.PathLike[str], *, revision: str | None = None, setting: str = "path"
) -> "AutoencoderKL | SmallKl":
    """The AutoencoderKL or SmallKl of a folder or a Hub repository, every weight of which comes from there.

    Raises:
        WeightsError: the files are not to be had, or are those of another network; names `setting`.
    """
    from diffusers import AutoencoderKL  # some seconds, which pixel models need not wait for

    from domains.imagenet.tokenizers.small_kl import SmallKl

    folder = local_folder(path, files=KL_FILES, revision=revision, setting=setting)
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, SmallKl)}
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in kinds:
        raise WeightsError(f"{setting}={path} must hold an AutoencoderKL of diffusers or a SmallKl, got {name}")
    # Without `low_cpu_mem_usage` it does not ask for another package.
    autoencoder: AutoencoderKL | SmallKl = load_complete(
        kinds[name].from_pretrained, folder, setting=setting, low_cpu_mem_usage=False
    )
    return autoencoder
