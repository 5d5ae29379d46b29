"""Writing a store chunk by chunk, by any number of processes, so that a kill costs the chunks in the making.

    writer = StoreWriter(path, plan)                    creates the store, or goes on with it if it has the same plan
    for number in writer.pending(rank, ranks):          chunks that are not there, or not what was written
        writer.write(number, samples)                   appears under its name whole, then its checksum
    writer.finish()                                     marks it complete once every chunk is there

Rank r of R writes the chunks r, r + R, ...; there is nothing to agree on but the plan.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from domains.imagenet.data.chunked_arrays import (
    CHANGING,
    FORMAT,
    chunk_digest,
    chunk_file,
    chunks_of,
    content_digest,
    read_attributes,
)
from domains.imagenet.data.image_data import DataError
from drifting.training.atomic_file import replacing, sync_folder, temporary_name

CHUNK_BYTES = 2**25  # reading one whole should be worth a request, and a kill costs one per process
MOST_ROWS = 2048
DIGESTS = "sha256"


@dataclass(frozen=True)
class StorePlan:
    """What a store is going to hold.

    `array`: name of the array of samples; `shape` and `dtype` of one; labels [N]; `attributes`: JSON values; `command`:
    what goes on with the store; `chunk`: samples in a chunk, None for the power of two that makes it at most 32 MB.
    """

    array: str
    shape: tuple[int, ...]
    dtype: str
    labels: NDArray[np.int64]
    attributes: Mapping[str, Any]
    command: str
    chunk: int | None = None

    @property
    def rows(self) -> int:
        """Samples in a chunk."""
        if self.chunk is not None:
            return self.chunk
        most = CHUNK_BYTES // (int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize)
        return min(MOST_ROWS, 2 ** max(0, most.bit_length() - 1))


class StoreWriter:
    """The store of `plan` at `path`, created or gone on with.

    Raises:
        DataError: what lies there is no store, or one of another plan; names the first difference.
    """

    def __init__(self, path: Path, plan: StorePlan) -> None:
        self.path, self.plan = path, plan
        if plan.rows < 1 or len(plan.labels) < 1:
            raise ValueError(f"a store needs samples in chunks, got {len(plan.labels)} in chunks of {plan.rows}")
        if not path.exists():
            self._create()
        self._group: Any = self._opened()

    @property
    def chunks(self) -> int:
        """How many there are."""
        return chunks_of(self._group[self.plan.array])

    def pending(self, rank: int = 0, ranks: int = 1) -> Iterator[int]:
        """The chunks of this rank that are still to write; those that are there are read and compared."""
        for number in range(rank, self.chunks, ranks):
            if not self._intact(number):
                yield number

    def chunk_rows(self, number: int) -> range:
        """Which samples a chunk holds."""
        start = number * self.plan.rows
        return range(start, min(start + self.plan.rows, len(self.plan.labels)))

    def write(self, number: int, samples: NDArray[Any]) -> None:
        """Write the samples [n, ...] of a chunk; complete under its name or not there at all.

        Raises:
            ValueError: another shape or type than planned.
        """
        expected = (len(self.chunk_rows(number)), *self.plan.shape)
        if samples.shape != expected or samples.dtype != np.dtype(self.plan.dtype):
            given = f"{samples.shape} {samples.dtype}"
            raise ValueError(f"samples of chunk {number} must be {expected} {self.plan.dtype}, got {given}")
        padding = np.zeros((self.plan.rows - len(samples), *self.plan.shape), samples.dtype)
        # A chunk that is made anew must not be taken for the old one after a kill in between.
        digest = self._digest_file(number)
        digest.unlink(missing_ok=True)
        with replacing(self._file(number)) as file:
            file.write(np.ascontiguousarray(samples).data)
            file.write(padding.data if padding.size else b"")
        with replacing(digest) as file:
            file.write(chunk_digest(samples, self.plan.rows))

    def finish(self) -> bool:
        """Mark the store complete if every chunk is there; whether it is. Several ranks may do it at once."""
        digests = self._group[DIGESTS]
        if not all(self._digest_file(number).is_file() for number in range(digests.shape[0])):
            return False
        content = content_digest(self._group.attrs.asdict(), self.plan.labels, digests[:])
        attributes = self._group.attrs.asdict() | {"complete": True, "sha256": content}
        metadata = json.loads((self.path / "zarr.json").read_text()) | {"attributes": attributes}
        with replacing(self.path / "zarr.json", several=True) as file:
            file.write(json.dumps(metadata).encode())
        return True

    def _create(self) -> None:
        """Everything but the samples, under a temporary name first: a store is there with its plan or not at all."""
        plan, temporary = self.plan, temporary_name(self.path)
        shutil.rmtree(temporary, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        attributes = {"format": FORMAT, "complete": False, "command": plan.command, **plan.attributes}
        group: Any = zarr.open_group(temporary, mode="w", zarr_format=3, attributes=attributes)
        n, chunks = len(plan.labels), -(-len(plan.labels) // plan.rows)
        _array(group, plan.array, (n, *plan.shape), (plan.rows, *plan.shape), plan.dtype)
        _array(group, DIGESTS, (chunks, 32), (1, 32), "uint8")
        _array(group, "labels", (n,), (n,), "int64")[:] = plan.labels
        temporary.rename(self.path)
        sync_folder(self.path.parent)

    def _opened(self) -> Any:
        """The group, if it is of this plan."""
        held = read_attributes(self.path)
        group: Any = zarr.open_group(self.path, mode="r", zarr_format=3)
        planned = json.loads(json.dumps({"format": FORMAT, **self.plan.attributes}))
        for key in planned.keys() | (held.keys() - set(CHANGING)):
            if planned.get(key) != held.get(key):
                raise self._other(key, held.get(key), planned.get(key))
        if self.plan.array not in group:
            raise self._other("array", sorted(group.array_keys()), self.plan.array)
        samples = group[self.plan.array]
        shape, chunks = (len(self.plan.labels), *self.plan.shape), (self.plan.rows, *self.plan.shape)
        if (samples.shape, samples.chunks) != (shape, chunks) or samples.dtype != np.dtype(self.plan.dtype):
            layout = f"{samples.shape} {samples.dtype} in chunks of {samples.chunks[0]}"
            raise self._other("layout", layout, f"{shape} {self.plan.dtype} in chunks of {self.plan.rows}")
        if not np.array_equal(group["labels"][:], self.plan.labels):
            raise self._other("labels", "others", "those of the source")
        return group

    def _other(self, key: str, held: object, planned: object) -> DataError:
        return DataError(
            f"{self.path} exists and was begun with {key} {_short(held)}; this command has {_short(planned)}. Give the "
            "settings that it was begun with, name another out, or delete it"
        )

    def _intact(self, number: int) -> bool:
        file, digest = self._file(number), self._digest_file(number)
        if not (file.is_file() and digest.is_file()):
            return False
        return chunk_digest(np.fromfile(file, np.uint8)[None], 1) == digest.read_bytes()

    def _file(self, number: int) -> Path:
        return chunk_file(self._group[self.plan.array], number)

    def _digest_file(self, number: int) -> Path:
        return chunk_file(self._group[DIGESTS], number)


def wait_for_store(path: Path, *, every: float = 1.0, patience: float = 24 * 3600.0) -> None:
    """Return once another rank has created the store.

    Raises:
        DataError: it has not within `patience` seconds.
    """
    began = time.monotonic()
    while not path.exists():
        if time.monotonic() - began > patience:
            raise DataError(f"rank 0 has not begun {path} within {patience:g} s; its own message says why")
        time.sleep(every)


def _array(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> Any:
    """Uncompressed; the chunks' files are named c.0.0 in one folder instead of nested ones."""
    key = {"name": "default", "separator": "."}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=None,
        filters=None,
        serializer=little if np.dtype(dtype).itemsize > 1 else "auto",
        fill_value=0,
        chunk_key_encoding=key,
        config={"write_empty_chunks": True},
    )


def _short(value: object, limit: int = 120) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else f"{text[:limit]}..."
