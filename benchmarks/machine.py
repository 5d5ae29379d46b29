"""On what a benchmark ran, and how it is held to one core."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "jax", "jaxlib", "drift-models", "numpy")


def use_one_core(cpu: int | None = None) -> int:
    """Hold this process and its children to one core, torch and XLA to one thread; the core's number.

    Call it before the first computation: torch and XLA start their threads then, not when they are imported.

    Args:
        cpu: number of the core; None is the last one that this process may use.
    """
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed) if cpu is None else cpu
    if chosen not in allowed:
        raise SystemExit(f"error: --cpu must be one of {sorted(allowed)}, got {cpu}")
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {chosen})
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return chosen


def facts() -> dict:
    """Commit, processor, memory and versions, as JSON can hold them."""
    return {
        "commit": _commit(),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "compiler": _compiler(),
        "DRIFTING_NATIVE": os.environ.get("DRIFTING_NATIVE"),
    }


def _commit() -> str | None:
    """Commit of this checkout, "+changes" if it differs; None outside a checkout."""

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _compiler() -> str | None:
    """First line of what the C compiler says of itself; the library's kernels are compiled on first use."""
    try:
        call = [os.environ.get("CC", "cc"), "--version"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _field(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
