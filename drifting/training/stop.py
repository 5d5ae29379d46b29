"""A polite end: SIGTERM, or one SIGINT, lets the loop finish its step, save, and exit with 0.

with StopRequest() as stop, MetricsLog(...) as log, checkpoint.in_background():
    while state.step < steps:
        ...
        stopping = stop.requested()         # once per step, on every rank
        if stopping or every(config.checkpoint.every, state.step, last=steps):
            checkpoint.save(state.step)
        if stopping:
            break
if state.step < steps:
    return stop.announce(run_dir, step=state.step, total=steps)
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from drifting.training.ranks import Ranks


class StopRequest:
    """Asked once per step; every rank gets the same answer at the same step. A context manager, in the main thread.

    A second SIGINT interrupts at once (KeyboardInterrupt); what is saved stays. Making it is a collective call.
    """

    def __init__(self) -> None:
        self._ranks = Ranks.connect()
        self._caught = 0  # by this rank
        self._agreed = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank has been asked to stop. One message of eight bytes between CPUs; none for one process."""
        self._agreed = self._ranks.largest(self._caught)
        return self._agreed != 0

    def announce(self, run_dir: Path, *, step: int, total: int) -> None:
        """Say, on rank 0, what happened and how to continue."""
        if self._ranks.first:
            name = signal.Signals(self._agreed).name
            sys.stderr.write(
                f"{name}: stopped after step {step} of {total}, saved in {run_dir}. The same command continues.\n"
            )

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._caught = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        if self._ranks.first:
            # Not through sys.stderr: the signal may have come in the middle of a write to it.
            os.write(2, f"\n{signal.Signals(number).name}: finishing this step, then saving\n".encode())
