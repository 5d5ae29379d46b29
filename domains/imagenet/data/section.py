"""Which images a command reads: the `data` section of its configuration.

What a generator learns and what it is measured against are two questions: a latent model learns from a store of
latents, and is measured against images. `load_training_data` answers the first, `load_images` the second.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from domains.imagenet.data.digits import digits_splits
from domains.imagenet.data.fashion_mnist import fashion_mnist, missing_fashion_mnist
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.missing import Missing
from drifting.training.config import require
from drifting.training.errors import ConfigError

KINDS = ("digits", "fashion_mnist", "folder", "pixels", "latents")
SPLITS = ("train", "validation", "test")


@dataclass
class DataSection:
    """digits and fashion_mnist come with their splits; the other kinds are paths.

    kind: `folder` reads JPEGs in class folders, `pixels` a store of `pack_images`, `latents` one of `encode_latents`.
    path: the training set. validation, test: folder or pixel store of held-out images. images: for latents, folder or
    pixel store of the training images, where a judge or nearest neighbours are asked for. size: side of the images that
    folders are cropped to. crop: `centre` or `random`, of a folder. flip: half of the samples, left to right.
    leave_out: text file of the images of a folder `path` that are left out, a name relative to it on each line.
    posterior: of latents, `frozen` (one sample per image and orientation, as the authors), `sampled` or `mean`.
    num_classes: refuse other data; 0 takes what there is. threads: that decode the images of a folder.
    """

    kind: str = "digits"
    path: str = ""
    validation: str = ""
    test: str = ""
    images: str = ""
    size: int = 256
    crop: str = "centre"
    flip: bool = True
    posterior: str = "frozen"
    num_classes: int = 0
    threads: int = 4
    leave_out: str = ""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "data.kind", " or ".join(KINDS), self.kind)
        named = self.kind in ("digits", "fashion_mnist") or self.path != ""
        require(named, "data.path", f"the training set, for data.kind={self.kind}", self.path)
        require(self.size >= 1, "data.size", "at least 1", self.size)
        require(self.crop in ("centre", "random"), "data.crop", "centre or random", self.crop)
        expected = "frozen, sampled or mean"
        require(self.posterior in ("frozen", "sampled", "mean"), "data.posterior", expected, self.posterior)
        require(self.threads >= 1, "data.threads", "at least 1", self.threads)
        require(self.num_classes >= 0, "data.num_classes", "at least 0", self.num_classes)


def load_training_data(section: DataSection) -> ImageData:
    """What the generator, or an encoder of the same samples, learns from.

    Raises:
        ConfigError: images of a store are to be left out.
        DataError: files that are damaged, incomplete, or of another number of classes.
    """
    if section.leave_out and section.kind != "folder":
        raise ConfigError(f"data.leave_out must be empty for data.kind={section.kind}, got {section.leave_out}")
    data = _training_data(section)
    if section.num_classes and len(data.classes) != section.num_classes:
        listed = ", ".join(data.classes[:5])
        raise DataError(
            f"data.path={section.path} has {len(data.classes)} classes ({listed}, ...), expected "
            f"data.num_classes={section.num_classes}"
        )
    return data


def load_images(section: DataSection, split: str) -> ImageData:
    """Pixels of a split: train, validation or test.

    Raises:
        ConfigError: the section names no such images.
        DataError: files that are damaged or incomplete.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if section.kind == "digits":
        data: ImageData = getattr(digits_splits(), split)
        return data
    if section.kind == "fashion_mnist":
        return fashion_mnist(split, section.path)
    key = image_key(section, split)
    path = getattr(section, key)
    if not path:
        raise ConfigError(f"data.{key} must name a folder or a pixel store of {split} images, got nothing")
    if section.kind == "folder" and key == "path":
        return _training_folder(section, crop="centre", flip=False)
    return open_images(path, section.size, section.threads)


def open_images(path: str, size: int, threads: int = 4) -> ImageData:
    """A pixel store, or a folder of class folders whose images are cropped at the centre to `size`."""
    from domains.imagenet.data.image_folder import ImageFolder
    from domains.imagenet.data.pixel_store import PixelStore

    if _is_store(path):
        return PixelStore(path, flip=False)
    return ImageFolder(path, size=size, crop="centre", flip=False, threads=threads)


def missing_data(section: DataSection) -> list[Missing]:
    """What of the training set is not there."""
    if section.kind == "latents":
        from domains.imagenet.data.latent_store import missing_latent_store

        return missing_latent_store(section.path, "data.path")
    return missing_images(section, "train")


def missing_images(section: DataSection, split: str) -> list[Missing]:
    """What of a split's images is not there, or not named."""
    if section.kind == "digits":
        return []
    if section.kind == "fashion_mnist":
        return missing_fashion_mnist(section.path)
    from domains.imagenet.data.image_folder import missing_image_folder
    from domains.imagenet.data.pixel_store import missing_pixel_store

    key = image_key(section, split)
    path = getattr(section, key)
    stored = section.kind == "pixels" if key == "path" else _is_store(path) or path.endswith(".zarr")
    missing = missing_pixel_store(path, f"data.{key}") if stored else missing_image_folder(path, f"data.{key}")
    if key == "path" and section.leave_out and not Path(section.leave_out).expanduser().is_file():
        missing.append(
            Missing("data.leave_out", f"{section.leave_out} does not exist", "data.leave_out= takes all images")
        )
    return missing


def held_out_data(section: DataSection) -> ImageData | None:
    """The validation split in the form of the training data, unchanged by flips or crops; None if none is named.

    Raises:
        DataError: files that are damaged or incomplete.
    """
    if section.kind in ("digits", "fashion_mnist"):
        return load_images(section, "validation")
    if not section.validation:
        return None
    if section.kind == "latents":
        return load_training_data(replace(section, path=section.validation, posterior="mean", flip=False))
    return load_images(section, "validation")


def missing_held_out(section: DataSection) -> list[Missing]:
    """The validation split, if one is named and not there."""
    if section.kind in ("digits", "fashion_mnist") or not section.validation:
        return []
    if section.kind == "latents":
        from domains.imagenet.data.latent_store import missing_latent_store

        return missing_latent_store(section.validation, "data.validation")
    return missing_images(section, "validation")


def image_key(section: DataSection, split: str) -> str:
    """The key of the section that names the images of a split."""
    if split != "train":
        return split
    return "images" if section.kind == "latents" else "path"


def _is_store(path: str) -> bool:
    return "://" in path or (Path(path).expanduser() / "zarr.json").exists()


def _training_data(section: DataSection) -> ImageData:
    if section.kind in ("digits", "fashion_mnist"):
        return load_images(section, "train")
    if section.kind == "folder":
        return _training_folder(section, crop=section.crop, flip=section.flip)
    if section.kind == "pixels":
        from domains.imagenet.data.pixel_store import PixelStore

        return PixelStore(section.path, flip=section.flip)
    from domains.imagenet.data.latent_store import LatentStore

    return LatentStore(section.path, posterior=section.posterior, flip=section.flip)


def _training_folder(section: DataSection, *, crop: str, flip: bool) -> ImageData:
    from domains.imagenet.data.image_folder import ImageFolder

    folder = ImageFolder(section.path, size=section.size, crop=crop, flip=flip, threads=section.threads)
    if not section.leave_out:
        return folder
    return folder.without(Path(section.leave_out).expanduser().read_text().splitlines())
