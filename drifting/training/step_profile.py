"""A profiler's trace of a few steps into the run directory (`log.profile`).

    with profiled_steps(run_dir, enabled=config.log.profile, rank=world.rank) as profile:
        while ...:
            ...
            profile.step()

The regions of a `StepTimer` are in it by name. Open it with ui.perfetto.dev or chrome://tracing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARMUP, ACTIVE = 3, 2, 3


class Steps(Protocol):
    """What the loop tells the profiler."""

    def step(self) -> None:
        """A training step is done."""
        ...


class _NoProfile:
    def step(self) -> None:
        pass


@contextmanager
def profiled_steps(
    run_dir: Path, *, enabled: bool, rank: int = 0, wait: int = WAIT, warmup: int = WARMUP, active: int = ACTIVE
) -> Iterator[Steps]:
    """Trace `active` steps, after `wait` steps untouched and `warmup` traced but thrown away; then train on untraced.

    Every rank writes `profile/rank<rank>.json` of `run_dir`; rank 0 prints where. A run that ends before the first
    traced step writes none and says so. Not enabled: an object that does nothing.
    """
    if not enabled:
        yield _NoProfile()
        return
    path = run_dir / "profile" / f"rank{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)

    def write(finished: profile) -> None:
        finished.export_chrome_trace(str(path))
        if rank == 0:
            _say(f"profile of {active} steps or what there was of them: {path} (open it with ui.perfetto.dev)")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as traced:
        yield traced
    if not path.exists() and rank == 0:
        _say(f"no profile: the run ended before step {wait + warmup + 1}, the first one to be traced")


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
