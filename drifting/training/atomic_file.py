"""Files that are either the old version or the new one, whatever kills the process or the machine in between."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    """The name under which the new version of `path` is written: hidden, in the same folder, one per target."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, *, several: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` when the block ends without an error.

    `several`: processes may do it at the same time, each under a temporary name of its own; the last one stays.

    The bytes reach the disk before the name does, and the folder entry last. After an error (OSError when the disk is
    full, among others) the old file is untouched and the temporary one gone; only a kill leaves a temporary one behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp") if several else temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of `path`, by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Delete a file, or a folder so that a kill leaves no half of it under its name."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    hidden = path if path.name.startswith(".") else temporary_name(path.with_name(f"{path.name}.old"))
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden)
