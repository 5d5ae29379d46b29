"""The authors' cache of latents, TREE/<class>/<image>.pt, into a store of latents.

A file holds one sample of an image's posterior, scaled, and one of its mirror image: a dict with `moments` and
`moments_flip` (moments by name only), or two in a tuple or list, each [h, w, c] or [c, h, w], tensor or numpy array of
floats. Nothing else is read, and nothing in a file is executed.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import class_files
from domains.imagenet.data.latent_store import ARRAY, ORIENTATIONS
from domains.imagenet.data.store_writer import StorePlan
from domains.imagenet.missing import Missing

KEYS = ("moments", "moments_flip")
SUFFIX = ".pt"
LAYOUTS = f"a dict with {KEYS[0]} and {KEYS[1]}, or a tuple of two, each [h, w, c] or [c, h, w] of floats"
MOST_CHANNELS = 64  # the side that is smaller than the others and at most so long is the channels'
FLOATS = (np.float16, np.float32, np.float64)
RECONSTRUCT = np.empty(0).__reduce__()[0]
# What a pickled numpy array of floats refers to: by its names in numpy 1 and 2.
NUMPY = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(each)) for each in FLOATS),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


class PtTree:
    """The files of a tree, class by class in the order of their names.

    Args:
        root: the folder of class folders.
        expected_classes: how many there must be; None takes any number.
        threads: that read at a time.

    Raises:
        DataError: no such tree, files outside of class folders, an empty class, a first file of another layout.
    """

    def __init__(self, root: Path, *, expected_classes: int | None = None, threads: int = 1) -> None:
        self.root, self.threads = root, threads
        self.classes, files = class_files(root, (SUFFIX,))
        if expected_classes not in (None, len(self.classes)):
            raise DataError(f"{root} must have {expected_classes} class folders, it has {len(self.classes)}")
        self.names = [name for name, _, _ in files]
        self.labels = torch.tensor([label for _, label, _ in files], dtype=torch.int64)
        self.shape = tuple(read_pair(root / self.names[0]).shape[1:])

    def read(self, indices: Tensor) -> Tensor:
        """Both orientations [n, 2, c, h, w] float32 at indices [n].

        Raises:
            DataError: a file of another layout, or of another shape than the first.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            pairs = list(pool.map(self._read_one, indices.tolist()))
        return torch.stack(pairs)

    def plan(self, *, scale: float, command: str, chunk: int | None = None) -> StorePlan:
        """The store to write; `scale` is the one that the latents were multiplied by."""
        digest = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        return StorePlan(
            array=ARRAY,
            shape=(ORIENTATIONS, *self.shape),
            dtype="float16",
            labels=self.labels.numpy(),
            attributes={
                "classes": list(self.classes),
                "source": {"kind": "pt tree", "images": len(self.names), "sha256": digest},
                "tokenizer": None,  # not said by the files
                "scale": scale,
                "shift": 0.0,
                "posterior": False,
                "scaled": True,
            },
            command=command,
            chunk=chunk,
        )

    def _read_one(self, index: int) -> Tensor:
        file = self.root / self.names[index]
        pair = read_pair(file)
        if tuple(pair.shape[1:]) != self.shape:
            first = self.root / self.names[0]
            raise DataError(f"{file} holds latents of {tuple(pair.shape[1:])}, {first} of {self.shape} (c, h, w)")
        return pair


def read_pair(file: Path) -> Tensor:
    """Latents of an image and of its mirror image, [2, c, h, w] float32.

    Raises:
        DataError: the file is damaged, holds more than tensors, arrays and primitives, or has another layout; names it.
    """
    try:
        with torch.serialization.safe_globals(NUMPY):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has several for a damaged file and for what it does not unpickle
        raise DataError(f"{file} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict):
        pair = [content[key] for key in KEYS] if set(KEYS) <= content.keys() else []
    else:
        pair = list(content) if isinstance(content, tuple | list) else []
    if len(pair) != ORIENTATIONS:
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{file} must hold {LAYOUTS}; it holds {held}")
    return torch.stack(_alike(file, [_channels_first(file, one) for one in pair]))


def _channels_first(file: Path, given: Any) -> Tensor:
    """[c, h, w] float32."""
    latent = torch.from_numpy(given) if isinstance(given, np.ndarray) and given.dtype.kind == "f" else given
    if not (isinstance(latent, Tensor) and latent.is_floating_point() and latent.ndim == 3):
        shape = f"{tuple(given.shape)} {given.dtype}" if hasattr(given, "shape") else type(given).__name__
        raise DataError(f"{file} must hold {LAYOUTS}; one of them is {shape}")
    first, last = latent.shape[0], latent.shape[2]
    if first == last or min(first, last) > MOST_CHANNELS:
        raise DataError(
            f"{file}: which side of {tuple(latent.shape)} is the channels' cannot be told; expected {LAYOUTS}"
        )
    return (latent.permute(2, 0, 1) if last < first else latent).float().contiguous()


def _alike(file: Path, pair: Sequence[Tensor]) -> list[Tensor]:
    if pair[0].shape != pair[1].shape:
        raise DataError(f"{file}: both latents must have one shape, got {[tuple(one.shape) for one in pair]}")
    return list(pair)


def missing_pt_tree(tree: str, setting: str) -> list[Missing]:
    """What is missing of a tree, by its first level only; `setting` is the key that names it."""
    path = Path(tree).expanduser()
    if path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return []
    return [
        Missing(setting, f"no class folders in {tree!r}: TREE/<class>/<image>.pt", f"name the tree by {setting}=TREE")
    ]
