"""What every tokenizer promises, and the one that leaves pixels as they are.

Shapes: K samples, images [K, 3, H, W] in [-1, 1], latents [K, c, h, w] with h = H / r, moments [K, 2 c, h, w].
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from domains.imagenet.frozen import FrozenModule, freeze, weight_dtype
from domains.imagenet.transformer import at_least_float32
from drifting.training.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True)
class Identity:
    """Which tokenizer made some latents. `sha256`: of its weights as stored, whatever file format they came in."""

    kind: str
    path: str
    sha256: str


class Tokenizer(FrozenModule):
    """Frozen, differentiable both ways. `channels` is c of the latents, `downscale` r the ratio of the sides."""

    channels: int
    downscale: int
    identity: Identity

    @abstractmethod
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [K, 3, H, W] -> scaled latents [K, c, H / r, W / r], float32.

        A posterior is sampled with `generator`; without one its mean is taken.

        Raises:
            ValueError: another number of channels, or sides that r does not divide.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [K, c, h, w] -> images [K, 3, r h, r w], float32, not clipped to [-1, 1].

        Raises:
            ValueError: another number of channels.
        """

    def found_at(self, path: str) -> Self:
        """The same tokenizer, whose identity names the folder or repository it was read from."""
        self.identity = replace(self.identity, path=path)
        return self


class PixelTokenizer(Tokenizer):
    """The images are the latents: pixel generators."""

    channels = 3
    downscale = 1
    identity = Identity("none", "", "")

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images."""
        return checked_shape("images", images, 3)

    def decode(self, latents: Tensor) -> Tensor:
        """The latents."""
        return checked_shape("latents", latents, 3)


class LatentTokenizer(Tokenizer):
    """An autoencoder whose latents z are brought to about zero mean and unit variance: latent = (z - shift) scale.

    What it knows of an image are its moments, mean and log-variance of a Gaussian posterior over z; a store of latents
    holds them as they are, neither shifted nor scaled.

    The autoencoder is taken over, not copied.

    Args:
        autoencoder: images to z and back.
        kind: name of this sort of autoencoder, for the identity.
        channels: c.
        downscale: r.
        scale, shift: see above.
        dtype: of weights and activations; None leaves the weights as they are.

    Raises:
        ValueError: a scale that is not positive, a shift that is not finite.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        *,
        kind: str,
        channels: int,
        downscale: int,
        scale: float,
        shift: float,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive, got {scale}")
        if not math.isfinite(shift):
            raise ValueError(f"shift must be finite, got {shift}")
        self.scale, self.shift = float(scale), float(shift)
        self.channels, self.downscale = channels, downscale
        self.identity = Identity(kind, "", Fingerprint(autoencoder).sha256)
        # diffusers warns of any conversion, even of none.
        self.autoencoder = freeze(autoencoder, None if dtype == weight_dtype(autoencoder) else dtype)
        self.eval()

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of z, what a store of latents holds: [K, 3, H, W] -> [K, 2 c, h, w], float32.

        The log-variance lies in [-30, 20], so that half precision holds it.

        Raises:
            ValueError: another number of channels, or sides that r does not divide.
        """

    @abstractmethod
    def decode_unscaled(self, z: Tensor) -> Tensor:
        """z [K, c, h, w] -> images [K, 3, r h, r w], float32."""

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the posterior, its mean without a generator, as latent; [K, 2 c, h, w] -> [K, c, h, w].

        Raises:
            ValueError: another number of channels.
        """
        mean, log_variance = at_least_float32(checked_shape("moments", moments, 2 * self.channels)).chunk(2, dim=1)
        if generator is None:
            return self.scale * (mean - self.shift)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
        return self.scale * (mean + (log_variance / 2).exp() * noise.to(mean.device) - self.shift)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [K, 3, H, W] -> latents [K, c, H / r, W / r], float32: a sample, or the mean without generator."""
        return self.latents(self.moments(images), generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [K, c, h, w] -> images [K, 3, r h, r w], float32, not clipped to [-1, 1]."""
        return self.decode_unscaled(checked_shape("latents", latents, self.channels) / self.scale + self.shift)


def checked_shape(name: str, x: Tensor, channels: int, multiple: int = 1) -> Tensor:
    """`x`, if it is [K, channels, H, W] with sides divisible by `multiple`.

    Raises:
        ValueError: it is not; names it by `name`.
    """
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        sides = f", sides divisible by {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name} must be [K, {channels}, H, W]{sides}, got shape {tuple(x.shape)}")
    return x
