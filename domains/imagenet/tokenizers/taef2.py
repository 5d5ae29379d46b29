"""TAEF2: a small deterministic autoencoder of 32-channel latents, 8 x 8 pixels each (its published weights: MIT).

It is the AutoencoderTiny of diffusers in all but its blocks at the smallest resolution: they add to their input a
branch of 1 x 1 convolutions around a group norm, which lets far places of an image know of each other.
Two files hold its weights, `taef2_encoder.pth` and `taef2_decoder.pth`, layers numbered as in the two networks.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from domains.imagenet.frozen import weight_dtype
from domains.imagenet.hub import WeightsError, local_folder
from domains.imagenet.pretrained import check_fits
from domains.imagenet.tokenizers.tokenizer import LatentTokenizer, checked_shape
from domains.imagenet.transformer import at_least_float32

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

TAEF2_FILES = ("taef2_encoder.pth", "taef2_decoder.pth")
CHANNELS = 32
DOWNSCALE = 8
WIDTH = 64
BRANCH_WIDTH, BRANCH_GROUPS = 256, 4
BRANCHED = {"encoder": range(11, 14), "decoder": range(2, 5)}  # layers of AutoencoderTiny: those at 1/8 of the side
FIRST_LAYER = {"encoder": 0, "decoder": 1}  # the file counts the decoder's clamp of its input as layer 0
LEAST_LOG_VARIANCE = -30.0  # as diffusers clamps it: a deviation of 3e-7


class TinyTokenizer(LatentTokenizer):
    """TAEF2 as a tokenizer. Its posterior is a point, and its latents have a deviation of about 0.85 as they are.

    Args:
        autoencoder: of `taef2_network`.
        scale, shift: latent = (z - shift) scale; None are 1 and 0.
        dtype: of weights and activations; None leaves the weights as they are.
    """

    autoencoder: "AutoencoderTiny"

    def __init__(
        self,
        autoencoder: "AutoencoderTiny",
        *,
        scale: float | None = None,
        shift: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            autoencoder,
            kind="taef2",
            channels=CHANNELS,
            downscale=DOWNSCALE,
            scale=1.0 if scale is None else scale,
            shift=0.0 if shift is None else shift,
            dtype=dtype,
        )

    def moments(self, images: Tensor) -> Tensor:
        """z and the least log-variance there is: [K, 3, H, W] -> [K, 64, H / 8, W / 8], float32."""
        checked_shape("images", images, 3, self.downscale)
        z = at_least_float32(self.autoencoder.encode(images.to(weight_dtype(self.autoencoder))).latents)
        return torch.cat((z, torch.full_like(z, LEAST_LOG_VARIANCE)), dim=1)

    def decode_unscaled(self, z: Tensor) -> Tensor:
        """z [K, 32, h, w] -> images [K, 3, 8 h, 8 w], float32."""
        return at_least_float32(self.autoencoder.decode(z.to(weight_dtype(self.autoencoder))).sample)


class BranchedBlock(nn.Module):
    """relu(conv(y) + y) with y = x + branch(x); x [K, 64, h, w]. `conv` is that of an AutoencoderTinyBlock."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.pool = nn.Sequential(
            nn.Conv2d(WIDTH, BRANCH_WIDTH, 1, bias=False),
            nn.GroupNorm(BRANCH_GROUPS, BRANCH_WIDTH),
            nn.ReLU(),
            nn.Conv2d(BRANCH_WIDTH, WIDTH, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = x + self.pool(x)
        return torch.relu(self.conv(y) + y)


def taef2_network() -> "AutoencoderTiny":
    """The network with fresh weights; images in [-1, 1]."""
    from diffusers import AutoencoderTiny  # some seconds, which pixel models need not wait for

    network = AutoencoderTiny(latent_channels=CHANNELS)
    for half, numbers in BRANCHED.items():
        layers = getattr(network, half).layers
        for number in numbers:
            layers[number] = BranchedBlock(layers[number].conv)
    return network


def load_taef2(
    path: str | os.PathLike[str], *, revision: str | None = None, setting: str = "path"
) -> "AutoencoderTiny":
    """The network with the weights of a folder or a Hub repository, in float32.

    Raises:
        WeightsError: a file is not to be had, is damaged, or has other names or shapes: all of them are named.
    """
    folder = local_folder(path, files=TAEF2_FILES, revision=revision, setting=setting)
    network, state = taef2_network(), {}
    for half, file in zip(FIRST_LAYER, TAEF2_FILES, strict=True):
        state |= _renamed(_read(folder / file), half, folder / file)
    check_fits(state, network, folder)
    network.load_state_dict(state)
    return network


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{file} holds more than tensors and primitives, and is not read: {error}") from error
    except Exception as error:  # torch has several for a damaged file
        raise WeightsError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file} must hold a state dict of tensors")
    return content


def _renamed(content: Mapping[str, Tensor], half: str, file: Path) -> dict[str, Tensor]:
    """`<i>.<rest>` of a file -> `<half>.layers.<i - first>.<rest>`."""
    matches = {name: re.fullmatch(r"(\d+)\.(.+)", name) for name in content}
    if odd := [name for name, match in matches.items() if match is None]:
        raise WeightsError(f"{file} must name its weights by layer number, got {', '.join(odd[:5])}")
    return {
        f"{half}.layers.{int(match[1]) - FIRST_LAYER[half]}.{match[2]}": content[name].float()
        for name, match in matches.items()
        if match is not None
    }
