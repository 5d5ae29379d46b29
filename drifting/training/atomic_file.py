"""Files that are either the old version or the new one, whatever kills the process or the machine in between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    """The name under which the new version of `path` is written: hidden, in the same folder, one per target."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` when the block ends without an error.

    The bytes reach the disk before the name does, and the folder entry last. After an error (OSError when the disk is
    full, among others) the old file is untouched and the temporary one gone; only a kill leaves a temporary one behind.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of `path`, by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
