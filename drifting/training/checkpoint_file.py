"""One checkpoint as one file: what torch.save writes, followed by a line with its SHA-256.

Readable by `torch.load(path, weights_only=True)` as well. Only tensors and primitives are written, and reading never
runs code: a file whose checksum is wrong is refused unread, and a pickled object is refused by weights_only.
"""

import hashlib
import re
import shutil
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from drifting.training.atomic_file import replacing, temporary_name
from drifting.training.errors import CheckpointError

FORMAT = "drifting checkpoint 1"
CHECKSUM = b"\nsha256 "
TRAILER_BYTES = len(CHECKSUM) + 64 + 1

PRIMITIVES = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}


@dataclass(frozen=True)
class CheckpointContent:
    """What a file holds: `step` done optimiser steps, and the state_dict of each named entry."""

    step: int
    entries: dict[str, Any]


def checkpoint_paths(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, `checkpoints/step_<8 digits>.pt`, by rising step; other files are ignored."""
    found = (path for path in (run_dir / "checkpoints").glob("step_*.pt") if re.fullmatch(r"step_\d{8,}", path.stem))
    return sorted(found, key=_step_of)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Name of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step_{step:08d}.pt"


def write_checkpoint(path: Path, content: CheckpointContent) -> None:
    """Write `path` whole or not at all.

    Raises CheckpointError if a state holds something else than tensors and primitives, or if the disk refuses the file;
    an older file of that name, and every other checkpoint, survives either.
    """
    for name, state in content.entries.items():
        _refuse_objects(name, state)
    payload = {"format": FORMAT, "step": content.step, "entries": content.entries}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            hashing = _HashingWriter(file)
            try:
                torch.save(payload, cast(BinaryIO, hashing))
            except RuntimeError as error:
                # torch's archive writer hides the reason of a failed write.
                raise (hashing.failure or error) from error
            file.write(CHECKSUM + hashing.digest.hexdigest().encode() + b"\n")
    except OSError as error:
        good = checkpoint_paths(path.parent.parent)
        last = f"the last good checkpoint is {good[-1].name}" if good else "there is no earlier checkpoint"
        free = shutil.disk_usage(_existing(path.parent)).free / 2**20
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; {free:.0f} MiB are free there, {last}. "
            "Make room and run the same command again to continue from it."
        ) from error


def read_checkpoint(path: Path) -> CheckpointContent:
    """Read a checkpoint to the CPU, after its checksum; raises CheckpointError saying what is wrong and what to do."""
    try:
        with path.open("rb") as file:
            _verify(path, file)
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    except CheckpointError:
        raise
    except Exception as error:  # unpickling fails in as many ways as there are pickles
        raise CheckpointError(
            f"{path} holds something else than tensors and primitives and was not loaded. {_advice(path)}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {FORMAT!r} file. {_advice(path)}")
    return CheckpointContent(step=payload["step"], entries=payload["entries"])


def remove_temporaries(run_dir: Path) -> None:
    """Delete what a save that was killed left behind; for the process that trains in `run_dir` alone."""
    for path in (run_dir / "checkpoints").glob(temporary_name(Path("step_*.pt")).name):
        path.unlink()


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


def _verify(path: Path, file: BinaryIO) -> None:
    remaining = file.seek(0, 2) - TRAILER_BYTES
    file.seek(max(remaining, 0))
    trailer = file.read()
    if remaining < 0 or not re.fullmatch(re.escape(CHECKSUM) + rb"[0-9a-f]{64}\n", trailer):
        foreign = zipfile.is_zipfile(path)
        reason = "was not written by this library" if foreign else "is truncated, or no checkpoint at all"
        raise CheckpointError(f"{path} {reason}: it does not end with its checksum. {_advice(path)}")
    digest = hashlib.sha256()
    file.seek(0)
    while remaining > 0:
        block = file.read(min(remaining, 2**22))
        digest.update(block)
        remaining -= len(block)
    if digest.hexdigest().encode() != trailer[len(CHECKSUM) : -1]:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum at its end. {_advice(path)}")


def _advice(path: Path) -> str:
    """What to do about an unreadable file: only the user may decide to lose the steps since the one before."""
    older = [other for other in checkpoint_paths(path.parent.parent) if _step_of(other) < _step_of(path)]
    if older:
        return f"Delete it to continue from step {_step_of(older[-1])} ({older[-1].name})."
    return "No earlier checkpoint exists: delete it to start from step 0."


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
