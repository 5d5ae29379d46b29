"""One checkpoint file: what torch.save writes, followed by a line with its SHA-256.

A run of one process has one such file per checkpoint, `checkpoints/step_<8 digits>.pt`; a run of many ranks has a
folder of them, one per rank (checkpoint_folder.py). Readable by `torch.load(path, weights_only=True)` as well. Only
tensors and primitives are written, and reading never runs code: a file whose checksum is wrong is refused unread, and a
pickled object is refused by weights_only.
"""

import hashlib
import re
import shutil
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from drifting.training.atomic_file import replacing, temporary_name
from drifting.training.errors import CheckpointError
from drifting.training.pieces import Piece

FORMAT = "drifting checkpoint 1"
CHECKSUM = b"\nsha256 "
TRAILER_BYTES = len(CHECKSUM) + 64 + 1

NAME = r"step_\d{8,}(\.pt)?"

PRIMITIVES = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}


@dataclass(frozen=True)
class CheckpointContent:
    """What a file holds: `step` done optimiser steps, and the state_dict of each named entry.

    With `ranks` > 1 it is that of `rank`. Entries that are named in `pieces` are shared by all ranks: the file holds
    the listed parts of their tensors, and an empty tensor in place of every other.
    """

    step: int
    entries: dict[str, Any]
    rank: int = 0
    ranks: int = 1
    pieces: dict[str, list[Piece]] = field(default_factory=dict)


class DamagedCheckpoint(CheckpointError):
    """A file that is not what a save wrote: `file`, and why. An earlier checkpoint may take its place."""

    def __init__(self, file: Path, reason: str) -> None:
        self.file, self.reason = file, reason
        checkpoint = file if re.fullmatch(NAME, file.name) else file.parent
        super().__init__(f"{file} {reason}. {_advice(checkpoint)}")


def checkpoint_paths(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, files and folders, by rising step; anything else there is ignored."""
    found = (path for path in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(NAME, path.name))
    return sorted((path for path in found if path.suffix or path.is_dir()), key=step_of)


def checkpoint_path(run_dir: Path, step: int, *, ranks: int = 1) -> Path:
    """Name of the checkpoint after `step` steps: a file of one process, a folder of many ranks."""
    return run_dir / "checkpoints" / f"step_{step:08d}{'.pt' if ranks == 1 else ''}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removesuffix(".pt").removeprefix("step_"))


def write_checkpoint(path: Path, content: CheckpointContent) -> None:
    """Write the checkpoint of a single process whole or not at all.

    Raises CheckpointError if a state holds something else than tensors and primitives, or if the disk refuses the file;
    an older file of that name, and every other checkpoint, survives either.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        raise write_error(path, error) from error


def write_file(path: Path, content: CheckpointContent) -> str:
    """Write one file whole or not at all and return its SHA-256; raises CheckpointError as above, and OSError."""
    for name, state in content.entries.items():
        _refuse_objects(name, state)
    payload = {"format": FORMAT, "step": content.step, "entries": content.entries}
    if content.ranks > 1:
        payload |= {"rank": content.rank, "ranks": content.ranks, "pieces": content.pieces}
    with replacing(path) as file:
        hashing = _HashingWriter(file)
        try:
            torch.save(payload, cast(BinaryIO, hashing))
        except RuntimeError as error:
            # torch's archive writer hides the reason of a failed write.
            raise (hashing.failure or error) from error
        hashing.write(CHECKSUM + hashing.digest.hexdigest().encode() + b"\n")
        return hashing.digest.hexdigest()


def write_error(path: Path, error: OSError) -> CheckpointError:
    """What to say of a checkpoint that the disk refuses."""
    good = checkpoint_paths(path.parent.parent)
    last = f"the last good checkpoint is {good[-1].name}" if good else "there is no earlier checkpoint"
    free = shutil.disk_usage(_existing(path.parent)).free / 2**20
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}; {free:.0f} MiB are free there, {last}. "
        "Make room and run the same command again to continue from it."
    )


def read_checkpoint(path: Path, *, mmap: bool = False) -> CheckpointContent:
    """Read a file to the CPU, after its checksum; raises CheckpointError saying what is wrong and what to do."""
    verify_file(path)
    return load_file(path, mmap=mmap)


def load_file(path: Path, *, mmap: bool = False) -> CheckpointContent:
    """Read a file that is verified; with `mmap` a tensor is read from the disk when it is used."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise _read_error(path, error) from error
    except Exception as error:  # unpickling fails in as many ways as there are pickles
        reason = "holds something else than tensors and primitives and was not loaded"
        raise DamagedCheckpoint(path, reason) from error
    if not isinstance(payload, dict) or payload.pop("format", None) != FORMAT:
        raise DamagedCheckpoint(path, f"is not a {FORMAT!r} file")
    try:
        return CheckpointContent(**payload)
    except TypeError as error:
        raise DamagedCheckpoint(path, f"is not a {FORMAT!r} file: it holds {sorted(payload)}") from error


def verify_file(path: Path) -> str:
    """Compare a file with the checksum at its end; returns the SHA-256 of the whole file."""
    try:
        with path.open("rb") as file:
            return _verify(path, file)
    except OSError as error:
        raise _read_error(path, error) from error


def remove_temporaries(run_dir: Path) -> None:
    """Delete what a save that was killed left behind; for the processes that train in `run_dir` alone."""
    for path in (run_dir / "checkpoints").glob(temporary_name(Path("step_*")).name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _HashingWriter:
    """Passes writes on to `file` and hashes them; remembers the OSError that torch.save turns into another error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is complete. torch.save asks for the method."""


def _refuse_objects(where: str, value: Any) -> None:
    """Only what weights_only can read back: refused now, not on the day the run has to be resumed."""
    if isinstance(value, torch.Tensor) or type(value) in PRIMITIVES:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _refuse_objects(f"{where}[{key!r}]", key)
            _refuse_objects(f"{where}[{key!r}]", item)
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _refuse_objects(f"{where}[{index}]", item)
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds only tensors, "
            "dicts, lists, tuples, numbers and strings. Convert it in that object's state_dict."
        )


def _verify(path: Path, file: BinaryIO) -> str:
    remaining = file.seek(0, 2) - TRAILER_BYTES
    file.seek(max(remaining, 0))
    trailer = file.read()
    if remaining < 0 or not re.fullmatch(re.escape(CHECKSUM) + rb"[0-9a-f]{64}\n", trailer):
        foreign = zipfile.is_zipfile(path)
        reason = "was not written by this library" if foreign else "is truncated, or no checkpoint at all"
        raise DamagedCheckpoint(path, f"{reason}: it does not end with its checksum")
    file.seek(0)
    digest = hashlib.sha256()
    while remaining > 0:
        block = file.read(min(remaining, 2**22))
        if not block:
            raise DamagedCheckpoint(path, "is truncated: it became shorter while it was read")
        digest.update(block)
        remaining -= len(block)
    if digest.hexdigest().encode() != trailer[len(CHECKSUM) : -1]:
        raise DamagedCheckpoint(path, "is damaged: its content does not have the checksum at its end")
    digest.update(trailer)
    return digest.hexdigest()


def _read_error(path: Path, error: OSError) -> CheckpointError:
    """A file that may not be read may be whole: nothing takes its place. What the disk does not give back is lost."""
    if isinstance(error, PermissionError):
        return CheckpointError(f"cannot read {path}: {error.strerror}. Allow this user to read it.")
    return DamagedCheckpoint(path, f"cannot be read: {error.strerror or error}")


def _advice(path: Path) -> str:
    """What to do about an unreadable checkpoint where no earlier one may take its place by itself."""
    older = [other for other in checkpoint_paths(path.parent.parent) if step_of(other) < step_of(path)]
    if older:
        return f"Delete it to continue from step {step_of(older[-1])} ({older[-1].name})."
    return "No earlier checkpoint exists: delete it to start from step 0."


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
