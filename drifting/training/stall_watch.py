"""A data source that hangs is named, and does not hold the run for ever.

    with StallWatch() as watch:
        while ...:
            with watch.waiting_for("latents, shard 12"):
                batch = next(batches)

One thread for the whole run looks at the clock; a fetch costs two assignments. Threads and signals cannot wake a
process that waits inside a read, so the end is the end of the process: the last checkpoint is what remains, and the
launcher ends the other ranks.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")

EXIT_STALLED = 75  # EX_TEMPFAIL: try again


def end_process(message: str) -> None:
    """Print where every thread is and end this process with status 75."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_STALLED)


class StallWatch:
    """Says which source has been waited for since when, and ends the process after a bound.

    Args:
        warn_after: seconds of waiting after which a line is printed, and again after each doubling.
        end_after: seconds after which `end` is called; None never.
        rank: named in the messages.
        end: called in the watching thread with the message, after it was printed.

    Raises:
        ValueError: times that are not 0 < warn_after < end_after.
    """

    def __init__(
        self,
        warn_after: float = 60.0,
        end_after: float | None = 1800.0,
        *,
        rank: int = 0,
        end: Callable[[str], None] = end_process,
    ) -> None:
        if not (warn_after > 0 and (end_after is None or warn_after < end_after)):
            raise ValueError(
                f"log.stall_warning must be positive and below log.stall_limit (null: no limit), "
                f"got {warn_after} and {end_after}"
            )
        self._warn_after, self._end_after, self._rank, self._end = warn_after, end_after, rank, end
        self._waiting: tuple[str, float] | None = None  # source and since when; replaced whole, so no lock
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    @contextmanager
    def waiting_for(self, source: str) -> Iterator[None]:
        """Inside, this process waits for `source`."""
        self._waiting = (source, time.monotonic())
        try:
            yield
        finally:
            self._waiting = None

    def iterate(self, source: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each watched while it is fetched."""
        iterator = iter(items)
        while True:
            with self.waiting_for(source):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _watch(self) -> None:
        told: tuple[str, float] | None = None
        due = self._warn_after
        while not self._closed.wait(self._warn_after / 4):
            waiting = self._waiting
            if waiting is None:
                continue
            if waiting is not told:
                told, due = waiting, self._warn_after
            source, since = waiting
            seconds = time.monotonic() - since
            clock = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
            stalled = f"rank {self._rank} has waited {seconds:.0f} s for data, since {clock}: {source}"
            if self._end_after is not None and seconds >= self._end_after:
                message = (
                    f"error: {stalled}. Gave up (log.stall_limit); the same command goes on from the last checkpoint."
                )
                _say(message)
                self._end(message)
                return
            if seconds >= due:
                due *= 2
                _say(f"warning: {stalled}")


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
