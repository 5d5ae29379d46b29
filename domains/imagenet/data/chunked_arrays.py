"""Stores of samples as zarr v3 groups, read in any order: what the pixel store and the latent store have in common.

    <array> [N, ...]      the samples, cut along N into chunks of some 32 MB, as they lie in memory: not compressed
    labels [N]            int64
    sha256 [chunks, 32]   of each chunk's bytes, the last one padded to a whole chunk; without one it is not written
    attributes            format, complete, classes, source, command, sha256 of it all, and what the kind of store needs

Chunks that lie on this machine as plain bytes are memory-mapped; those of a store that somebody compressed, or that
lies behind a URL (fsspec: s3://, memory://, ...), are read through zarr, a whole chunk at a time.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.storage import LocalStore

from domains.imagenet.data.image_data import DataError
from domains.imagenet.missing import Missing

FORMAT = "drifting samples 1"
CHANGING = ("complete", "sha256", "command")  # attributes that do not say what a store holds


class StoredSamples:
    """A complete store, opened for reading; may be pickled, and used after a fork.

    Args:
        path: folder or URL.
        array: name of the array of samples.

    Raises:
        DataError: no such store, of another kind, not complete, or damaged so that it shows.
    """

    def __init__(self, path: str | os.PathLike[str], array: str) -> None:
        self.location = location(path)
        group, self.attributes = _open(self.location)
        if array not in group or "labels" not in group:
            held = ", ".join(sorted(group.array_keys()))
            raise DataError(f"{self.location} holds no {array} but {held or 'nothing'}: another kind of store")
        if not self.attributes["complete"]:
            raise DataError(
                f"{self.location} is not complete: its command was stopped. The same command finishes it: "
                f"{self.attributes['command']}"
            )
        samples: Any = group[array]
        self.name, self.shape, self.dtype, self.chunk = array, samples.shape, samples.dtype, samples.chunks[0]
        self.labels: NDArray[np.int64] = np.asarray(group["labels"][:])
        self.mapped = _plain(samples)
        self._files = [chunk_file(samples, number) for number in range(chunks_of(samples))] if self.mapped else []
        self._check(samples)
        self._blocks: dict[int, NDArray[Any]] = {}
        self._samples, self._process = samples, os.getpid()

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def fingerprint(self) -> str:
        """Of the labels, the samples and what they are."""
        return str(self.attributes["sha256"])

    def read(self, rows: NDArray[np.int64], *within: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Samples [n, ...] at rows [n], in the order asked for; `within`: numpy indices into the axes after the first.

        Raises:
            IndexError: a row that is not in [0, N).
            DataError: a chunk is gone.
        """
        rows = np.asarray(rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        chunks, places = np.divmod(rows, self.chunk)
        order = np.argsort(chunks, kind="stable")
        ends = np.flatnonzero(np.diff(chunks[order])) + 1

        def inside(part: Any) -> list[Any]:
            return [index if isinstance(index, slice) else index[part] for index in within]

        nothing = np.empty((0, *self.shape[1:]), self.dtype)[(rows[:0], *inside(slice(0)))]
        result = np.empty((len(rows), *nothing.shape[1:]), self.dtype)
        for part in np.split(order, ends) if len(rows) else ():
            result[part] = self._block(int(chunks[part[0]]))[(places[part], *inside(part))]
        return result

    def damaged_chunks(self) -> Iterator[int]:
        """Read everything; the numbers of the chunks whose bytes are not those that were written."""
        group, _ = _open(self.location)
        digests: Any = group["sha256"]
        for number in range(-(-len(self) // self.chunk)):
            if chunk_digest(self._block(number), self.chunk) != digests[number].tobytes():
                yield number

    def _block(self, number: int) -> NDArray[Any]:
        return self._map(number) if self.mapped else self._read_block(number)

    def _map(self, number: int) -> NDArray[Any]:
        if number not in self._blocks:
            shape = (self.chunk, *self.shape[1:])  # the last chunk too
            size = int(np.prod(shape)) * self.dtype.itemsize
            try:
                # Not np.memmap, which keeps a file open for each map: ImageNet has more chunks than the usual limit.
                mapped = torch.from_file(str(self._files[number]), shared=False, size=size, dtype=torch.uint8)
            except RuntimeError as error:  # gone, or shorter
                raise DataError(f"{self._files[number]} cannot be read: {error}") from error
            block: NDArray[Any] = mapped.numpy().view(self.dtype).reshape(shape)
            block.flags.writeable = False
            self._blocks[number] = block
        return self._blocks[number]

    def _read_block(self, number: int) -> NDArray[Any]:
        """A chunk through zarr, without padding; the newest one is kept."""
        if self._process != os.getpid() or self._samples is None:  # fsspec's file systems refuse to work after a fork
            self._samples, self._process = _open(self.location)[0][self.name], os.getpid()
        if number not in self._blocks:
            block = np.asarray(self._samples[number * self.chunk : (number + 1) * self.chunk])
            self._blocks = {number: block}
        return self._blocks[number]

    def _check(self, samples: Any) -> None:
        """Chunks that are missing would read as zeros."""
        if not self.mapped:
            if samples.nchunks_initialized < samples.nchunks:
                found = f"{samples.nchunks_initialized} of {samples.nchunks}"
                raise DataError(f"{self.location} is damaged: it has {found} chunks")
            return
        size = self.chunk * int(np.prod(self.shape[1:])) * self.dtype.itemsize
        for file in self._files:
            held = file.stat().st_size if file.is_file() else None
            if held != size:
                state = "is missing" if held is None else f"has {held} bytes"
                raise DataError(
                    f"{self.location} is damaged: {file} {state}, expected {size}. Its command makes it anew: "
                    f"{self.attributes['command']}"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Maps would be pickled as what they show.
        return self.__dict__ | {"_blocks": {}, "_samples": None}


def location(path: str | os.PathLike[str]) -> str:
    """A URL as it is, a path without ~."""
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).expanduser())


def read_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attributes of a store, complete or not.

    Raises:
        DataError: no such store, or of another format.
    """
    return _open(location(path))[1]


def missing_store(path: str, setting: str, command: str) -> list[Missing]:
    """What is missing of a store, by its attributes alone.

    `setting` is the key that names it, `command` what makes one.
    """
    if not path:
        return [Missing(setting, "no store is named", command)]
    try:
        attributes = read_attributes(path)
    except DataError as error:
        return [Missing(setting, str(error), command)]
    if not attributes["complete"]:
        return [Missing(setting, f"{path} is not complete", attributes["command"])]
    return []


def chunk_digest(block: NDArray[Any], rows: int) -> bytes:
    """SHA-256 of a chunk of `rows` rows; what is missing in the last one counts as zeros."""
    digest = hashlib.sha256(np.ascontiguousarray(block).data)
    row = int(np.prod(block.shape[1:])) * block.dtype.itemsize
    digest.update(bytes((rows - len(block)) * row))
    return digest.digest()


def content_digest(attributes: Mapping[str, Any], labels: NDArray[np.int64], digests: NDArray[np.uint8]) -> str:
    """SHA-256 of what a store holds: its attributes, but for `CHANGING`, its labels and its chunks' digests."""
    kept = {key: value for key, value in attributes.items() if key not in CHANGING}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(labels).data)
    digest.update(np.ascontiguousarray(digests).data)
    return digest.hexdigest()


def chunks_of(array: Any) -> int:
    """How many chunks lie along the first axis."""
    return -(-array.shape[0] // array.chunks[0])


def _open(where: str) -> tuple[Any, dict[str, Any]]:
    try:
        group: Any = zarr.open_group(where, mode="r", zarr_format=3)
        attributes = dict(group.attrs)
    except (OSError, ValueError, KeyError, ImportError) as error:  # zarr's and fsspec's own errors are among these
        raise DataError(f"no store at {where}: {error}") from error
    if attributes.get("format") != FORMAT:
        raise DataError(f"{where} is no store of this version ({FORMAT}), got {attributes.get('format')!r}")
    return group, attributes


def _plain(array: Any) -> bool:
    """Whether a chunk's file is the array's bytes, in order."""
    codecs = array.metadata.codecs
    return (
        isinstance(array.store, LocalStore)
        and array.shards is None
        and array.chunks[1:] == array.shape[1:]
        and len(codecs) == 1
        and isinstance(codecs[0], BytesCodec)
        and (array.dtype.itemsize == 1 or array.dtype.isnative)
    )


def chunk_file(array: Any, number: int) -> Path:
    """Where a local store keeps a chunk."""
    key = array.metadata.encode_chunk_key((number,) + (0,) * (len(array.shape) - 1))
    return Path(array.store.root) / array.path / key
