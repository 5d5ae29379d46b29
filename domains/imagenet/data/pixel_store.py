"""Centre-cropped images of one size as a store of pixels: `images` [N, S, S, 3] uint8 and their labels.

writer = StoreWriter(out, pixel_plan(folder, command=...))         see domains/imagenet/pack_images.py
images = PixelStore(out).read(indices, generator)                  [n, 3, S, S]
"""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.imagenet.data.chunked_arrays import StoredSamples, missing_store
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.missing import Missing

ARRAY = "images"


class PixelStore(ImageData):
    """Images [3, S, S] uint8 of a store; with a generator, `read` flips half of them where `flip`.

    Args:
        path: folder or URL of a store that `python -m domains.imagenet.pack_images` wrote.
        flip: whether a generator flips.

    Raises:
        DataError: no such store, one of another kind, not complete, or damaged so that it shows.
    """

    dtype = torch.uint8

    def __init__(self, path: str | os.PathLike[str], *, flip: bool = True) -> None:
        self.store = StoredSamples(path, ARRAY)
        if len(self.store.shape) != 4 or self.store.shape[3] != 3 or self.store.dtype != np.uint8:
            given = f"{self.store.shape} {self.store.dtype}"
            raise DataError(f"{self.store.location}: images must be [N, S, S, 3] uint8, got {given}")
        self.flip = flip
        self.labels = torch.from_numpy(self.store.labels)
        self.classes = tuple(self.store.attributes["classes"])
        self.sample_shape = (3, *self.store.shape[1:3])
        self.fingerprint = hashlib.sha256(f"{self.store.fingerprint} flip={flip}".encode()).hexdigest()

    def read(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [n, 3, S, S] uint8 at indices [n]."""
        stored = torch.from_numpy(self.store.read(indices.numpy()))
        images = stored.permute(0, 3, 1, 2).contiguous()
        if generator is not None and self.flip:
            flips = torch.rand(len(indices), generator=generator) < 0.5
            images[flips] = images[flips].flip(-1)
        return images


def pixel_samples(images: Tensor) -> NDArray[Any]:
    """Images [n, 3, S, S] uint8 as the store keeps them: [n, S, S, 3]."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def missing_pixel_store(path: str, setting: str) -> list[Missing]:
    """What is missing of a pixel store; `setting` is the key that names it."""
    make = f"python -m domains.imagenet.pack_images folder=FOLDER size=SIZE out={path or 'OUT'}"
    return missing_store(path, setting, make)
