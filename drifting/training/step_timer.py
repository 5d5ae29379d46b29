"""Where the time of a training step goes, and what comes out of it: images per second, peak memory, MFU.

    timer = StepTimer(device)
    drift_loss = FeatureDriftLoss(timer.wrap("encoder", encoder), loss)
    while ...:
        with timer.region("data"):
            ...
        with timer.region("loss"):                   # without the encoder, which has a region of its own inside
            ...
        with timer.region("backward"):
            ...
        timer.step(images)
        if every(...):
            log.write(step, figures | timer.figures())

Regions may be nested; each is charged what its inner regions are not. On a CUDA device their ends are events on the
stream, read when they have passed, so that nothing waits for the device: a region is the time that the device spends or
is idle between its ends, not that of the Python code. Each region also has its name in a profiler's trace.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.profiler import record_function

Given = ParamSpec("Given")
Result = TypeVar("Result")


def is_timing(name: str) -> bool:
    """Whether a figure of `StepTimer` is called so: it differs from one run of the same command to the next."""
    return name.startswith("time/") or name in (
        "images_per_second",
        "seconds_per_step",
        "peak_memory_gib",
        "mfu",
    )


class _Interval(NamedTuple):
    """A region that has ended, and the one around it; a step, whose name is empty."""

    name: str
    outer: str | None
    begin: Any
    end: Any


class StepTimer:
    """Times the regions of a loop in this process; `figures` are means over the steps since it was last called.

    Args:
        device: of the training; CUDA is timed by events, everything else by the processor's clock.
        flops: that one step of this process needs (`training_flops`); None leaves MFU out.
        peak: FLOP/s of the device (`peak_flops`); None leaves MFU out.
    """

    def __init__(self, device: torch.device, *, flops: int | None = None, peak: float | None = None) -> None:
        self.flops, self.peak = flops, peak
        self._device = device
        self._open: list[tuple[str, Any, record_function | None]] = []
        self._ended: deque[_Interval] = deque()
        self._seconds: dict[str, float] = {}
        self._steps_read = 0
        self._restart()

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`."""
        depth = len(self._open)
        self.begin(name)
        try:
            yield
        finally:
            while len(self._open) > depth:  # an error may have left inner ones open
                self.end()

    def wrap(self, name: str, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """`function`, each call of which is a region."""

        def timed(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            with self.region(name):
                return function(*args, **kwargs)

        return timed

    def begin(self, name: str) -> None:
        """Open a region; for callbacks, where a `with` does not fit."""
        # Only for a profiler that listens: it costs three times what the rest does.
        record = record_function(name) if torch.autograd._profiler_enabled() else None  # type: ignore[attr-defined]
        if record is not None:
            record.__enter__()  # type: ignore[no-untyped-call]
        self._open.append((name, self._mark(), record))

    def end(self) -> None:
        """Close the innermost region."""
        name, begin, record = self._open.pop()
        if record is not None:
            record.__exit__(None, None, None)
        self._ended.append(_Interval(name, self._open[-1][0] if self._open else None, begin, self._mark()))

    def step(self, images: int) -> None:
        """A step that generated `images` (of all ranks, for the throughput of all) is done."""
        self._images += images
        self._steps += 1
        mark = self._mark()
        self._ended.append(_Interval("", None, mark, mark))
        self._read()

    def figures(self) -> dict[str, float]:
        """Means over the steps since the last call, for the metrics log; nothing waits, the last steps may come later.

        ====================== =========================================================================
        images_per_second      generated images over wall time, everything between the steps included
        seconds_per_step       wall time
        time/<region>          seconds per step
        time/other             seconds per step that no region was charged
        peak_memory_gib        largest allocation since the last call (CUDA); of the process so far (CPU)
        mfu                    FLOPs needed over FLOPs that the device could have done in the wall time
        ====================== =========================================================================
        """
        self._read()
        if not self._steps:
            return {}
        wall = (time.perf_counter() - self._began) / self._steps
        regions = {name: seconds / max(1, self._steps_read) for name, seconds in self._seconds.items()}
        found = {"images_per_second": self._images / self._steps / wall, "seconds_per_step": wall}
        found |= {f"time/{name}": seconds for name, seconds in regions.items()}
        found |= {"time/other": max(0.0, wall - sum(regions.values())), "peak_memory_gib": self._peak_memory() / 2**30}
        if self.flops is not None and self.peak is not None:
            found["mfu"] = self.flops / wall / self.peak
        self._seconds, self._steps_read = {}, 0
        self._restart()
        return found

    def _restart(self) -> None:
        self._began, self._images, self._steps = time.perf_counter(), 0, 0

    def _read(self) -> None:
        """Charge the intervals whose end has passed."""
        while self._ended and self._passed(self._ended[0].end):
            name, outer, begin, end = self._ended.popleft()
            if not name:
                self._steps_read += 1
                continue
            seconds = self._between(begin, end)
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            if outer is not None:
                self._seconds[outer] = self._seconds.get(outer, 0.0) - seconds

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _passed(self, mark: Any) -> bool:
        return self._device.type != "cuda" or bool(mark.query())

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3 if self._device.type == "cuda" else float(end - begin)

    def _peak_memory(self) -> int:
        if self._device.type != "cuda":
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak
