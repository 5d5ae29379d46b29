"""The real images that generated ones are compared with: statistics from a file, or gathered from images.

A reference is an npz file in one of three dialects:

    ADM                  mu, sigma, mu_s, sigma_s: statistics of pooled and spatial features; arr_0: uint8 images
    JiT, the authors     mu, sigma, or ref_mu, ref_sigma: of pooled features
    make_reference       ADM's statistics; features: of single images; network, resize, images: what made them

What a file lacks cannot be compared: without spatial statistics no sFID, without images or features no precision,
recall and KID. Nothing pickled is read.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domains.imagenet.metrics.feature_network import INCEPTION, FeatureNetwork, figure_name
from domains.imagenet.metrics.feature_set import FeatureSet, gather
from domains.imagenet.metrics.frechet import Gaussian
from domains.imagenet.metrics.npz_images import KEY, npz_images, npz_keys
from domains.imagenet.missing import Missing
from drifting.training.atomic_file import replacing
from drifting.training.errors import ConfigError

PAIRS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
SPATIAL_PAIR = ("mu_s", "sigma_s")
# Where published ones are told, as comments of a shell.
PUBLISHED = """\
# imagenet_256_fid_stats.npz, of the paper's numbers: the README of github.com/lambertae/drifting links its folder
# VIRTUAL_imagenet256_labeled.npz, ADM's: evaluations/README.md of github.com/openai/guided-diffusion"""


@dataclass(frozen=True, slots=True)
class Reference:
    """pooled, spatial: Gaussians of features; features [m, d]: of single images, for KID, precision and recall."""

    pooled: Gaussian
    spatial: Gaussian | None = None
    features: Tensor | None = None

    @classmethod
    def of(cls, real: FeatureSet) -> "Reference":
        """Of images that a pass has gathered."""
        spatial = None if real.spatial is None else real.spatial.gaussian()
        return cls(real.moments.gaussian(), spatial, real.pooled)

    def serves(self, network: str = INCEPTION) -> str:
        """What can be compared with it in the space of `network`, in words."""
        distance, spatial, kernel = (figure_name(figure, network) for figure in ("FD", "sFD", "KD"))
        if self.spatial is None:
            spatial = f"no {spatial} (no mu_s, sigma_s)"
        single = f"{kernel}, precision and recall"
        if self.features is None:
            return f"{distance}, {spatial}, no {single} (no images)"
        return f"{distance}, {spatial}, {single} against {len(self.features)} images"


def read_reference(
    path: str | Path, network: FeatureNetwork, *, images: str | Path = "", batch: int = 100
) -> Reference:
    """A reference from its file; single images, where it has some, are passed through the network.

    Args:
        path: the npz file.
        network: in whose space its statistics are.
        images: another npz file, whose arr_0 holds the images for precision, recall and KID.
        batch: images in one batch.

    Raises:
        ConfigError: no such file, none of its dialects, wrong shapes, pickled content, or made with another network.
    """
    resize = getattr(network, "resize", "")
    reference = _statistics(Path(path).expanduser(), name=network.name, width=network.width, resize=resize)
    source = _images_of(path, images)
    if source is not None:
        single = gather(npz_images(source, batch), network, with_logits=False)
        return replace(reference, features=single.pooled)
    return reference


def check_reference(path: str | Path, *, name: str, width: int, resize: str, images: str | Path = "") -> None:
    """Refuse what `read_reference` refuses with a network of this name, width and resize; no images pass through it.

    Raises:
        ConfigError: as `read_reference`, but that only the first image is read.
    """
    _statistics(Path(path).expanduser(), name=name, width=width, resize=resize)
    if (source := _images_of(path, images)) is not None:
        next(npz_images(source, 1))


def write_reference(path: Path, real: FeatureSet, *, resize: str = "") -> None:
    """Write what `read_reference` reads: statistics of all images, features of those that the pass has kept."""
    pooled = real.moments.gaussian()
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance, "features": real.pooled}
    if real.spatial is not None:
        spatial = real.spatial.gaussian()
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(
            file,
            network=np.array(real.network),
            resize=np.array(resize),
            images=np.array(real.moments.count),
            **{name: tensor.numpy() for name, tensor in arrays.items()},
        )


def missing_reference(path: str, setting: str, command: str) -> list[Missing]:
    """The file, if one is named and not there; `setting` is the key that names it, `command` what gets it."""
    if not path or Path(path).expanduser().is_file():
        return []
    return [Missing(setting, f"{path} does not exist", command)]


def _statistics(file: Path, *, name: str, width: int, resize: str) -> Reference:
    """Statistics, and features of single images where the file holds some."""
    keys = npz_keys(file)
    pair = next((pair for pair in PAIRS if set(pair) <= set(keys)), None)
    if pair is None:
        raise ConfigError(
            f"eval.reference={file} holds {', '.join(keys)}; expected mu and sigma, or ref_mu and ref_sigma"
        )
    for key, own in (("network", name), ("resize", resize)):
        if key in keys and (made := str(_read(file, key))) != own:
            raise ConfigError(f"eval.reference={file} was made with {key} {made!r}, this evaluation has {own!r}")
    pooled = _gaussian(file, pair)
    if len(pooled.mean) != width:
        raise ConfigError(
            f"eval.reference={file} has statistics of {len(pooled.mean)} features, {name} has {width}: "
            "it was made with another network"
        )
    spatial = _gaussian(file, SPATIAL_PAIR) if set(SPATIAL_PAIR) <= set(keys) else None
    features = torch.from_numpy(_read(file, "features")).float() if "features" in keys else None
    return Reference(pooled, spatial, features)


def _images_of(path: str | Path, images: str | Path) -> Path | None:
    """The file whose arr_0 holds single images; None if there is none."""
    if images:
        npz_keys(Path(images).expanduser())
        return Path(images).expanduser()
    file = Path(path).expanduser()
    return file if KEY in npz_keys(file) else None


def _gaussian(file: Path, pair: tuple[str, str]) -> Gaussian:
    mean, covariance = (_read(file, key) for key in pair)
    try:
        return Gaussian(torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(covariance.astype(np.float64)))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file}: {pair[0]}, {pair[1]}: {error}") from error


def _read(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
            return array
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file}: {key} cannot be read: {error}") from error
