"""Peak memory of one forward and backward pass, measured in a process of its own.

Resident: how far the process grew beyond what it held before, by the kernel's count; it sees every allocator, to some
hundred KiB. Allocated: the same by counting torch's allocations (or by XLA's plan), exact, without the workspace of
matrix libraries.

`python -m benchmarks.memory ours 64,64,64,16,256` prints both as JSON.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.machine import use_one_core
from benchmarks.problem import Shape, draw

WARM_UP = Shape(2, 4, 4, 2, 8)
# glibc returns what is freed to the kernel at once, so that a peak is what is in use and not what was once.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def peak_resident(call: Callable[[], object], times: int = 2) -> int:
    """Bytes by which resident memory rises above its present value while `call` runs, once after the other."""
    gc.collect()
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present value
    for _ in range(times):
        call()
    return _status_bytes("VmHWM") - before


def peak_allocated(call: Callable[[], object]) -> int:
    """Largest sum of what torch has allocated and not yet freed while `call` runs, in bytes."""
    with tempfile.TemporaryDirectory() as folder, _native_messages_muted():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        in_use += event["args"]["Bytes"]
        peak = max(peak, in_use)
    return peak


def in_fresh_process(implementation: str, shape: Shape) -> dict[str, int]:
    """Both peaks in bytes, {"resident", "allocated"}, of a process that does nothing else.

    Raises:
        RuntimeError: the process failed; the message is the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.memory", implementation, ",".join(map(str, shape))]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | RETURN_MEMORY)
    if result.returncode:
        raise RuntimeError((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    use_one_core()
    prepare, shape = IMPLEMENTATIONS[sys.argv[1]], Shape.parse(sys.argv[2])
    prepare(draw(WARM_UP if shape.N else WARM_UP._replace(N=0))).run()
    evaluation = prepare(draw(shape))
    resident = peak_resident(evaluation.run)
    planned = evaluation.planned_bytes
    allocated = peak_allocated(evaluation.run) if planned is None else planned
    print(json.dumps({"resident": resident, "allocated": allocated}))


@contextmanager
def _native_messages_muted() -> Iterator[None]:
    """Drop what libraries write to the error stream by themselves; torch's profiler has no setting for it."""
    stream, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        os.close(null)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}: peak memory needs Linux")


if __name__ == "__main__":
    main()
