"""Where demonstrations lie that were made or downloaded, and how one process makes what several ask for."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(given: str = "") -> Path:
    """`given`, or $DRIFTING_CACHE, or ~/.cache/drifting/demonstrations; not created."""
    chosen = given or os.environ.get("DRIFTING_CACHE") or "~/.cache/drifting/demonstrations"
    return Path(chosen).expanduser()


@contextmanager
def one_maker(path: Path) -> Iterator[None]:
    """Hold the lock of `path` within the block; others wait for it, and find `path` there when their turn comes.

    The lock ends with the process, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
