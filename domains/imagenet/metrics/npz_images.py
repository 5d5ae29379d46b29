"""Images in an npz file, a batch at a time: a reference's 10,000 pictures of 256 x 256 are two gigabytes."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from drifting.training.errors import ConfigError

KEY = "arr_0"  # of ADM's references and sample files: uint8 [n, H, W, 3]


def npz_keys(path: Path) -> tuple[str, ...]:
    """Names of the arrays.

    Raises:
        ConfigError: no such file, or none of that format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not a readable npz file: {error}") from error


def npz_images(path: Path, batch: int) -> Iterator[Tensor]:
    """Batches [<= batch, 3, H, W] uint8 of the array `arr_0`.

    Raises:
        ConfigError: no such array, or one of another type or shape.
    """
    with zipfile.ZipFile(path) as archive:
        if f"{KEY}.npy" not in archive.namelist():
            raise ConfigError(f"{path} holds no images: it has {', '.join(npz_keys(path))}, expected {KEY}")
        with archive.open(f"{KEY}.npy") as stream:
            version = npy.read_magic(stream)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(stream)
            if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or fortran:
                raise ConfigError(f"{path}: {KEY} must be uint8 [n, H, W, 3] in C order, got {dtype} {shape}")
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch):
                count = min(batch, shape[0] - start)
                content = stream.read(count * size)
                if len(content) != count * size:
                    raise ConfigError(f"{path}: {KEY} ends after {start} of {shape[0]} images; fetch it again")
                images = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(count, *shape[1:])
                yield images.permute(0, 3, 1, 2)
