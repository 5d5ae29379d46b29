"""Images as files in class folders, ROOT/<class>/<image>, decoded as they are read."""

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from domains.imagenet.data.crops import centre_crop, random_crop
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.missing import Missing

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm")
# What PIL turns into RGB without losing range; 16-bit and floating point pictures are not among them.
MODES = ("RGB", "L", "CMYK", "YCbCr", "P", "PA", "RGBA", "RGBX", "LA", "1")
SORT_VALIDATION = (
    "The images of a class belong into a folder named after it. ImageNet's validation archive is flat: sort its files "
    "into ROOT/<wnid>/ by the ground truth of the development kit first"
)
CROPS = ("centre", "random")


class ImageFolder(ImageData):
    """Every image of every class folder; the classes are the folders in the order of their names (for ImageNet: wnids).

    Grey, palette and CMYK pictures become RGB. With a generator, `read` flips half of the images where `flip`, and with
    crop="random" takes another part of each (`crops.random_crop`); without one it is the centre crop.

    Args:
        root: the folder of class folders.
        size: side S of the samples [3, S, S].
        crop: "centre" or "random".
        flip: whether a generator flips.
        expected_classes: how many class folders there must be, 1000 for ImageNet; None takes any number.
        threads: that decode at a time.

    Raises:
        ValueError: a size below 1, another crop, no thread.
        DataError: no such folder, images outside of class folders, a class without images, another number of classes.
    """

    dtype = torch.uint8

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int,
        crop: str = "centre",
        flip: bool = True,
        expected_classes: int | None = None,
        threads: int = 1,
    ) -> None:
        if size < 1 or threads < 1:
            raise ValueError(f"size and threads must be at least 1, got {size} and {threads}")
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
        self.root = Path(root).expanduser()
        self.size, self.crop, self.flip, self.threads = size, crop, flip, threads
        self.left_out: frozenset[str] = frozenset()
        self.classes, found = class_files(self.root, SUFFIXES)
        if expected_classes not in (None, len(self.classes)):
            raise DataError(
                f"{self.root} must have {expected_classes} class folders, it has {len(self.classes)}: "
                f"{_some(self.classes)}"
            )
        self._take(found)

    def _take(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Keep files (path relative to the root, label, bytes)."""
        self._files = tuple(files)
        self.labels = torch.tensor([label for _, label, _ in files], dtype=torch.int64)
        self.sample_shape = (3, self.size, self.size)
        self.source = hashlib.sha256("\n".join(self.listing).encode()).hexdigest()
        settings = f"{self.source} size={self.size} crop={self.crop} flip={self.flip}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    @property
    def files(self) -> list[Path]:
        """Every image, in the order of its index."""
        return [self.root / name for name in self.names]

    @property
    def names(self) -> list[str]:
        """Of every image, relative to the root."""
        return [name for name, _, _ in self._files]

    @property
    def listing(self) -> list[str]:
        """Name and length of every image: what `source` is the hash of."""
        return [f"{name} {size}" for name, _, size in self._files]

    def without(self, names: Collection[str]) -> "ImageFolder":
        """The same folder without some files, named as relative to the root; the classes stay.

        Raises:
            DataError: a class has no other image.
        """
        other = ImageFolder.__new__(ImageFolder)
        other.__dict__.update(self.__dict__)
        other.left_out = self.left_out | set(names)
        kept = [file for file in self._files if file[0] not in other.left_out]
        if empty := set(range(len(self.classes))) - {label for _, label, _ in kept}:
            raise DataError(f"{self.root}: no image is left of {_some([self.classes[label] for label in empty])}")
        other._take(kept)
        return other

    def read(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [n, 3, S, S] uint8 at indices [n].

        Raises:
            DataError: a file that cannot be decoded; names it.
        """
        n = len(indices)
        seeds, flips = [None] * n, [False] * n
        if generator is not None:
            # A generator for every image, or threads would draw in the order in which they happen to run.
            seeds = torch.randint(2**62, (n,), generator=generator).tolist()
            flips = (torch.rand(n, generator=generator) < 0.5 * self.flip).tolist()
        if self.threads == 1 or n < 2:
            images = [self._read_one(*each) for each in zip(indices.tolist(), seeds, flips, strict=True)]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                images = list(pool.map(self._read_one, indices.tolist(), seeds, flips))
        return torch.stack(images) if images else torch.empty(0, *self.sample_shape, dtype=self.dtype)

    def _read_one(self, index: int, seed: int | None, flip: bool) -> Tensor:
        image = decode(self.root / self._files[index][0])
        if seed is None or self.crop == "centre":
            pixels = centre_crop(image, self.size)
        else:
            pixels = random_crop(image, self.size, torch.Generator().manual_seed(seed))
        return pixels.flip(-1) if flip else pixels


def decode(file: Path) -> Image.Image:
    """The whole picture, in RGB.

    Raises:
        DataError: the file is missing, truncated, no image, or has more than 8 bits a channel; names it.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise DataError(f"{file} has pixels of mode {image.mode}; convert it to 8 bits a channel")
            return image.convert("RGB")  # decodes all of it
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL's decoders raise
        raise DataError(f"{file} cannot be decoded: {error}") from error


def missing_image_folder(root: str, setting: str) -> list[Missing]:
    """What is missing of an image folder, by its first level only; `setting` is the key that names it."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        what = f"no folder {root!r}: images in class folders, ROOT/<class>/<image>"
        return [Missing(setting, what, f"unpack the images and set {setting}=ROOT")]
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(path)):
        return [Missing(setting, f"{path} has no class folders", SORT_VALIDATION)]
    return []


def class_files(root: Path, suffixes: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, int, int]]]:
    """Names of the class folders, sorted, and (path relative to the root, label, bytes) of every file in them.

    Hidden files, and files with another suffix, are no part of it.

    Raises:
        DataError: no such folder, files outside of class folders, no class folder, a class without files.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder. Expected ROOT/<class>/<file>, with suffix {', '.join(suffixes)}")
    classes, loose = [], []
    for entry in os.scandir(root):
        if entry.is_dir() and not entry.name.startswith("."):
            classes.append(entry.name)
        elif entry.name.lower().endswith(tuple(suffixes)):
            loose.append(entry.name)
    if loose:
        names = _some(sorted(loose))
        raise DataError(f"{root} has {len(loose)} files outside of class folders ({names}). {SORT_VALIDATION}")
    if not classes:
        raise DataError(f"{root} has no class folders. {SORT_VALIDATION}")
    files, empty = [], []
    for label, name in enumerate(sorted(classes)):
        with os.scandir(root / name) as entries:
            found = sorted(
                (f"{name}/{entry.name}", label, entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(tuple(suffixes)) and not entry.name.startswith(".")
            )
        files += found
        if not found:
            empty.append(name)
    if empty:
        raise DataError(
            f"{root} has {len(empty)} class folders without files {', '.join(suffixes)}: {_some(empty)}. "
            "Fill or remove them"
        )
    return tuple(sorted(classes)), files


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)})" if len(names) > limit else "")
