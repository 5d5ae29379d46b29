"""Compiles kernels.c once per machine and loads it; without a C compiler there is no library, and nothing is lost.

The object file lies in the user's cache directory under a name that hashes source, compiler, flags and processor: a
home directory shared by unlike machines holds one for each.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: NaN has to stay NaN. Sums are marked for reordering one by one in the source.
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-std=c11")


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, compiled on first use (a second or two); None where there is no compiler, or it fails."""
    compiler = shlex.split(os.environ.get("CC", "cc"))  # such as "ccache gcc"
    if not compiler or shutil.which(compiler[0]) is None or os.environ.get("DRIFTING_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home directory
        detail = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        warnings.warn(
            f"drifting: {SOURCE.name} could not be compiled by {shlex.join(compiler)}; the plain PyTorch path gives "
            f"the same numbers, slower. DRIFTING_NATIVE=0 silences this. {detail}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _compiled(compiler: list[str]) -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(root) if root else Path.home() / ".cache") / "drifting"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cache.stat().st_uid != os.getuid() or cache.stat().st_mode & 0o022:
        raise PermissionError(f"{cache} can be written by others; code is loaded from it: chmod 700 it")
    key = "\0".join((SOURCE.read_text(), *compiler, *FLAGS, platform.machine(), _processor()))
    target = cache / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        # Under a name of its own first: several ranks may compile at the same time.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fresh = Path(folder) / target.name
            command = [*compiler, *FLAGS, "-shared", "-fPIC", "-o", str(fresh), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            fresh.replace(target)
    return target


def _processor() -> str:
    """What -march=native depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    described = ("model name", "flags", "Features", "CPU part")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(described))
