"""The checkpoint of many ranks: a folder `step_<8 digits>` with one file per rank and a manifest of their checksums.

It is written under a hidden name. When every rank's file is on the disk, rank 0 writes the manifest and renames the
folder: only then does the checkpoint exist. torch.distributed.checkpoint would write the same shards, but its list of
them (`.metadata`) and everything in it that is no tensor are pickles, which a reader has to execute.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifting.training.atomic_file import discard, replace_text, sync_folder, temporary_name
from drifting.training.checkpoint_file import (
    CheckpointContent,
    DamagedCheckpoint,
    load_file,
    step_of,
    verify_file,
    write_error,
    write_file,
)
from drifting.training.errors import CheckpointError
from drifting.training.ranks import Ranks

MANIFEST = "manifest.json"
FORMAT = "drifting checkpoint folder 1"


def rank_file(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return folder / f"rank_{rank:05d}.pt"


def write_folder(path: Path, content: CheckpointContent, ranks: Ranks) -> None:
    """Write the folder `path` whole or not at all; a collective call, in a background thread if need be.

    Raises CheckpointError, on every rank and with every other checkpoint still there, if any rank cannot write.
    """
    temporary = temporary_name(path)
    failure, digest = None, ""
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        digest = write_file(rank_file(temporary, ranks.rank), content)
    except OSError as error:
        failure = str(write_error(path, error))
    except Exception as error:  # whatever it is, the other ranks wait for an answer
        failure = f"cannot write {path}: {error}"
    try:
        reports = ranks.exchange({"sha256": digest, "failure": failure})
        outcome = None
        if ranks.first:
            outcome = _complete(path, temporary, content.step, reports)
        outcome = ranks.exchange(outcome)[0]
    except RuntimeError as error:
        raise CheckpointError(f"cannot write {path}: another rank has died ({error}).") from error
    if outcome is not None:
        raise CheckpointError(outcome)


def _complete(path: Path, temporary: Path, step: int, reports: list[dict[str, Any]]) -> str | None:
    """Rank 0's part, when every rank has written or failed; returns what went wrong."""
    failures = [f"rank {rank}: {report['failure']}" for rank, report in enumerate(reports) if report["failure"]]
    digests = {rank_file(temporary, rank).name: report["sha256"] for rank, report in enumerate(reports)}
    unseen = [name for name in digests if not (temporary / name).is_file()]
    try:
        if not failures and unseen:
            return (
                f"{path} is not complete: rank 0 does not see {', '.join(unseen[:5])}, which other ranks have written. "
                "run.root must lie on a file system that every rank shares."
            )
        if not failures:
            manifest = {"format": FORMAT, "step": step, "sha256": digests}
            replace_text(temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            if path.exists():
                discard(path)
            temporary.rename(path)
            sync_folder(path.parent)
            return None
        return failures[0] + (f" And {len(failures) - 1} ranks more." if len(failures) > 1 else "")
    except OSError as error:
        return str(write_error(path, error))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on the disk, before it is read: its files in rank order, and their SHA-256 where a manifest has it.

    Every method raises DamagedCheckpoint, naming the file, if it is not what a save wrote.
    """

    path: Path
    files: tuple[Path, ...]
    digests: tuple[str | None, ...]

    @classmethod
    def open(cls, path: Path) -> "SavedCheckpoint":
        """Either a file or a folder."""
        if not path.is_dir():
            return cls(path, (path,), (None,))
        manifest = _read_manifest(path)
        files = tuple(rank_file(path, rank) for rank in range(len(manifest)))
        if set(manifest) != {file.name for file in files}:
            raise DamagedCheckpoint(path / MANIFEST, f"must list rank_00000.pt and so on, it lists {sorted(manifest)}")
        return cls(path, files, tuple(str(manifest[file.name]) for file in files))

    def verify(self, rank: int) -> None:
        """Compare one file with its checksums."""
        digest = verify_file(self.files[rank])
        if self.digests[rank] not in (None, digest):
            raise DamagedCheckpoint(self.files[rank], f"is not the file that {MANIFEST} lists: its SHA-256 is {digest}")
        self.load(rank)

    def load(self, rank: int) -> CheckpointContent:
        """What one rank saved; its tensors are read from the disk when they are used."""
        content = load_file(self.files[rank], mmap=True)
        if self.path.is_dir():
            expected = {"step": step_of(self.path), "rank": rank, "ranks": len(self.files)}
            found = {name: getattr(content, name) for name in expected}
            if found != expected:
                raise DamagedCheckpoint(self.files[rank], f"belongs elsewhere: it is {found}, its place is {expected}")
        return content


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpoint(path, "is missing: the folder is no checkpoint, or no longer whole") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(path, f"cannot be read: {error}") from error
    valid = isinstance(manifest, dict) and manifest.get("format") == FORMAT and manifest.get("step") == step_of(folder)
    if not valid or not isinstance(manifest.get("sha256"), dict) or not manifest["sha256"]:
        raise DamagedCheckpoint(path, f"is not the manifest of a {FORMAT!r} of step {step_of(folder)}")
    return dict(manifest["sha256"])
