"""Fashion-MNIST (Xiao et al. 2017, MIT licence): 28 x 28 grey images of ten kinds of clothing, 60000 + 10000.

Read from the four idx files as they are distributed. Of the training images the last 500 of every class are kept for
validation.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import torch
from torch import Tensor

from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.missing import Missing

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
VALIDATION_PER_CLASS = 500
_FILES = {"train": "train", "validation": "train", "test": "t10k"}
_IDX_UINT8 = 8  # type code of the idx format


def fashion_mnist(split: str, path: str = "") -> LabelledImages:
    """uint8 images [N, 1, 28, 28] of split train (55000), validation (5000) or test (10000).

    Args:
        split: one of the three.
        path: folder of the idx files, packed or not; empty for that of Debian's package.

    Raises:
        DataError: no such file, or a damaged one.
    """
    folder = Path(path).expanduser() if path else SYSTEM_FOLDER
    part = _FILES[split]
    images = _read_idx(folder / f"{part}-images-idx3-ubyte", dimensions=3)[:, None]
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte", dimensions=1).long()
    if len(images) != len(labels) or images.shape[1:] != (1, 28, 28) or int(labels.max()) >= len(CLASSES):
        raise DataError(f"data.path={folder}: {part} is not Fashion-MNIST: images {tuple(images.shape)}")
    data = LabelledImages(images, labels, CLASSES)
    if split == "test":
        return data
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(CLASSES)):
        held_out[(labels == label).nonzero().squeeze(1)[-VALIDATION_PER_CLASS:]] = True
    return data.subset(held_out if split == "validation" else ~held_out)


def missing_fashion_mnist(path: str = "") -> list[Missing]:
    """What of the four files is not there."""
    folder = Path(path).expanduser() if path else SYSTEM_FOLDER
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if all(_found(folder / name) for name in names):
        return []
    command = "apt install dataset-fashion-mnist        or data.path=FOLDER with the four *-ubyte[.gz] files"
    return [Missing("data.path", f"Fashion-MNIST is not in {folder}", command)]


def _found(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.exists() else packed if packed.exists() else None


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    """The uint8 array of an idx file: magic number 0 0 type dimensions, big-endian sizes, then the bytes."""
    found = _found(path)
    if found is None:
        raise DataError(f"data.path: {path} does not exist, packed or not")
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.path: {found} is damaged: {error}") from error
    sizes = [int.from_bytes(content[4 * k : 4 * k + 4], "big") for k in range(1, dimensions + 1)]
    body = content[4 + 4 * dimensions :]
    if content[:4] != bytes((0, 0, _IDX_UINT8, dimensions)) or len(body) != torch.Size(sizes).numel():
        digest = hashlib.sha256(content).hexdigest()[:12]
        raise DataError(f"data.path: {found} is no idx file of {dimensions} dimensions, or is cut (sha256 {digest})")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(sizes)
