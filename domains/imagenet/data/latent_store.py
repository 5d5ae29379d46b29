"""Latents of images as a store, both orientations of each: what a latent generator learns from.

`moments` [N, 2, 2 c, h, w] float16: mean and log-variance of the posterior over z of an image, index 0 as it is, 1
flipped left to right. Of autoencoders without a posterior [N, 2, c, h, w]: z itself. Not samples: drawing one costs
little, and what the authors train on, one fixed sample of each image and orientation, is `posterior="frozen"`.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.imagenet.data.chunked_arrays import StoredSamples, missing_store
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.missing import Missing
from domains.imagenet.tokenizers import LatentTokenizer, Tokenizer
from drifting.training.draws import seed_of
from drifting.training.errors import ConfigError

ARRAY = "moments"
POSTERIORS = ("sampled", "frozen", "mean")
LOG_VARIANCES = -30.0, 20.0  # as diffusers clamps them; half precision holds their range
ORIENTATIONS = 2
SAME = 1e-4  # scales of one tokenizer, measured twice
CACHED = 64  # latents that are converted at a time, while they are in the core's cache


class LatentStore(ImageData):
    """Latents (z - shift) scale [c, h, w] float32 of a store.

    Without a generator `read` gives the mean of an image as it is. With one it flips half of the images where `flip`,
    and

    * "sampled" draws z from the posterior with the generator;
    * "frozen" draws it with noise that belongs to the image and its orientation: the same latent every time;
    * "mean" takes the mean.

    Args:
        path: folder or URL of a store that `python -m domains.imagenet.encode_latents` wrote.
        scale, shift: None are those that the store was made with.
        posterior: one of `POSTERIORS`; without effect on a store without posterior.
        flip: whether a generator flips.

    Raises:
        ValueError: another posterior, a scale that is not positive, a shift that is not finite.
        DataError: no such store, one of another kind, not complete, or damaged so that it shows.
    """

    dtype = torch.float32

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        scale: float | None = None,
        shift: float | None = None,
        posterior: str = "sampled",
        flip: bool = True,
    ) -> None:
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {posterior!r}")
        self.store = StoredSamples(path, ARRAY)
        attributes = self.store.attributes
        self.scale = float(attributes["scale"] if scale is None else scale)
        self.shift = float(attributes["shift"] if shift is None else shift)
        if not (0 < self.scale < math.inf and math.isfinite(self.shift)):
            raise ValueError(f"scale must be positive and shift finite, got {scale} and {shift}")
        self.posterior, self.flip = posterior, flip
        self.has_posterior = bool(attributes["posterior"])
        self.labels = torch.from_numpy(self.store.labels)
        self.classes = tuple(attributes["classes"])
        self.sample_shape = _sample_shape(self.store, self.has_posterior)
        self.gain, self.offset = _affine(attributes, self.scale, self.shift)
        settings = f"{self.store.fingerprint} scale={self.scale} shift={self.shift} posterior={posterior} flip={flip}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    def read(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [n, c, h, w] float32 at indices [n]."""
        flips = torch.zeros(len(indices), dtype=torch.int64)
        if generator is not None and self.flip:
            flips = torch.randint(ORIENTATIONS, (len(indices),), generator=generator)
        latents = torch.empty(len(indices), *self.sample_shape)
        drawn = self.has_posterior and generator is not None and self.posterior != "mean"
        for part in range(0, len(indices), CACHED):
            rows = slice(part, part + CACHED)
            place = indices[rows].numpy(), flips[rows].numpy()
            if drawn:
                moments = torch.from_numpy(self.store.read(*place))
                noise = self._noise(indices[rows], flips[rows], generator)
                _sample(moments, noise, out=latents[rows])
            else:
                mean = self.store.read(*place, slice(self.sample_shape[0]))  # half of the bytes
                latents[rows] = torch.from_numpy(mean)
            if (self.gain, self.offset) != (1, 0):
                latents[rows].mul_(self.gain).sub_(self.offset)
        return latents

    @property
    def origin(self) -> dict[str, Any]:
        """What made these latents: the tokenizer, None where the store does not say, and the scale and shift."""
        return {"tokenizer": self.store.attributes.get("tokenizer"), "scale": self.scale, "shift": self.shift}

    def refuse_other(self, tokenizer: Tokenizer) -> None:
        """Of latents that another tokenizer made, or brought to another scale, images would come out wrong.

        Raises:
            ConfigError: `tokenizer` is not the one that the store was made with, as far as the store says.
        """
        if not isinstance(tokenizer, LatentTokenizer):
            raise ConfigError(f"tokenizer.kind must be the one that made {self.store.location}, got none")
        made = self.store.attributes.get("tokenizer")  # None: a tree of the authors' does not say
        if made is not None and made["sha256"] != tokenizer.identity.sha256:
            raise ConfigError(
                f"tokenizer.path={tokenizer.identity.path} has other weights than those that made "
                f"{self.store.location}: {made['kind']} of {made['path']}. Name these, or encode the images again"
            )
        for key in ("scale", "shift"):
            ours, theirs = getattr(self, key), getattr(tokenizer, key)
            if not math.isclose(ours, theirs, rel_tol=SAME, abs_tol=SAME):
                raise ConfigError(f"tokenizer.{key} must be {ours}, that of {self.store.location}, got {theirs}")

    def _noise(self, indices: Tensor, flips: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal [n, c, h, w]: from the generator, or for every image and orientation its own."""
        noise = torch.empty(len(indices), *self.sample_shape)
        if self.posterior == "sampled":
            return noise.normal_(generator=generator)
        own = torch.Generator()
        for one, index, flipped in zip(noise, indices.tolist(), flips.tolist(), strict=True):
            one.normal_(generator=own.manual_seed(seed_of(0, "posterior", flipped, index)))
        return noise


def _sample(moments: Tensor, noise: Tensor, *, out: Tensor) -> None:
    """out = mean + exp(log-variance / 2) noise; moments [n, 2 c, h, w] float16, the others [n, c, h, w] float32."""
    mean, log_variance = moments.chunk(2, dim=1)
    out.copy_(log_variance).mul_(0.5).exp_().mul_(noise).add_(mean)


def latent_samples(moments: Tensor, flipped: Tensor, *, has_posterior: bool) -> NDArray[Any]:
    """What a store keeps of images: [n, 2, 2 c, h, w] float16; without a posterior only the means, [n, 2, c, h, w].

    `moments` [n, 2 c, h, w] are those of the images, `flipped` those of their mirror images.

    Raises:
        DataError: a mean that half precision does not hold.
    """
    both = torch.stack((moments, flipped), dim=1).float()
    mean, log_variance = both.chunk(2, dim=2)
    kept = torch.cat((mean, log_variance.clamp(*LOG_VARIANCES)), dim=2) if has_posterior else mean
    return half_precision(kept)


def half_precision(latents: Tensor) -> NDArray[Any]:
    """The same numbers as float16, on the CPU.

    Raises:
        DataError: one that is not finite there.
    """
    stored = latents.half()
    if not bool(stored.isfinite().all()):
        largest = float(latents.abs().max())
        raise DataError(f"latents must be finite and within half precision (65504), got up to {largest:g}")
    return stored.cpu().numpy()


def missing_latent_store(path: str, setting: str) -> list[Missing]:
    """What is missing of a store of latents; `setting` is the key that names it."""
    return missing_store(path, setting, f"python -m domains.imagenet.encode_latents folder=FOLDER out={path or 'OUT'}")


def _sample_shape(store: StoredSamples, has_posterior: bool) -> tuple[int, int, int]:
    if len(store.shape) != 5 or store.shape[1] != ORIENTATIONS or (has_posterior and store.shape[2] % 2):
        raise DataError(f"{store.location}: moments must be [N, 2, 2 c, h, w], got {store.shape}")
    if store.dtype.kind != "f":
        raise DataError(f"{store.location}: moments must be of a float type, got {store.dtype}")
    channels, height, width = (int(side) for side in store.shape[2:])
    return (channels // 2 if has_posterior else channels), height, width


def _affine(attributes: Mapping[str, Any], scale: float, shift: float) -> tuple[float, float]:
    """Gain a and offset b of latent = a stored - b.

    Stored is z, or, with the attribute `scaled`, the latent for the store's own scale and shift.
    """
    if not attributes.get("scaled", False):
        return scale, scale * shift
    return scale / attributes["scale"], scale * (shift - attributes["shift"])
