"""The run directory `<root>/<name>`: one configuration, one process at a time; the same command continues it.

resolved.yaml      every key of the configuration, defaults included
environment.json   a list: commit, versions and processors of each environment that the run has seen
.lock              held by the training process for as long as it lives
"""

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from drifting.training.atomic_file import replace_text
from drifting.training.config import ParallelConfig, RunConfig, Schema, typed
from drifting.training.errors import ConfigError, RunDirError
from drifting.training.ranks import on_first_rank

RESOLVED, ENVIRONMENT, LOCK = "resolved.yaml", "environment.json", ".lock"

# Where the folder is, not what it holds: runs may be moved.
LOCATION = "run.root"
# How ranks share the work, which leaves the result alone.
SHARING = tuple(f"parallel.{entry.name}" for entry in fields(ParallelConfig) if entry.name != "precision")
# What a run tells of itself.
LOG = "log"


def open_run(run: RunConfig, config: object, *, free: str | Sequence[str] = ()) -> Path:
    """Make `<run.root>/<run.name>` for the root dataclass `config`, or continue it; locked until this process ends.

    `free` names sections and keys that may differ when a run is continued, as they do not touch what is trained; nor do
    `log`, nor how ranks share the work, but for the precision. With many ranks rank 0 does it, and every rank returns
    when it is done; a collective call.

    Raises RunDirError, and changes nothing, if the folder holds other files, another configuration, or another process.
    """
    run_dir, may_differ = Path(run.root) / run.name, _may_differ(free)
    on_first_rank(lambda: _open(run_dir, config, may_differ), RunDirError)
    return run_dir


def check_run(run: RunConfig, config: object, *, free: str | Sequence[str] = ()) -> None:
    """Refuse what `open_run` would refuse, and make nothing, for commands with long work before it; a collective call.

    A run that exists is locked from now on.
    """
    run_dir, may_differ = Path(run.root) / run.name, _may_differ(free)
    on_first_rank(lambda: _check(run_dir, config, may_differ), RunDirError)


def _may_differ(free: str | Sequence[str]) -> tuple[str, ...]:
    return (LOCATION, LOG, *SHARING, *((free,) if isinstance(free, str) else free))


def _check(run_dir: Path, config: object, free: tuple[str, ...]) -> None:
    if (run_dir / RESOLVED).exists():
        _lock(run_dir)
        _refuse_other(run_dir, config, free)
    elif run_dir.exists():
        _refuse_foreign(run_dir)


def _open(run_dir: Path, config: object, free: tuple[str, ...]) -> None:
    saved = run_dir / RESOLVED
    if not saved.exists() and run_dir.exists():
        _refuse_foreign(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _lock(run_dir)
    if saved.exists():
        _refuse_other(run_dir, config, free)
    else:
        replace_text(saved, OmegaConf.to_yaml(OmegaConf.structured(config)))
    _record_environment(run_dir / ENVIRONMENT)


def load_config(run_dir: Path, schema: type[Schema]) -> Schema:
    """The configuration that a run was trained with, for commands that sample or evaluate it.

    Raises RunDirError if `run_dir` is no run directory, or if its configuration does not fit `schema`.
    """
    saved = run_dir / RESOLVED
    if not saved.is_file():
        raise RunDirError(
            f"{run_dir} is not a run directory: it has no {RESOLVED}. Give the folder that training made."
        )
    try:
        return typed(_read_yaml(saved), schema)
    except ConfigError as error:
        raise RunDirError(
            f"{run_dir} was made by another command ({error}). Give a run that this one can read."
        ) from error


def _refuse_foreign(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise RunDirError(f"{run_dir} is a file, a run needs a folder. Choose another run.name=... or move it away.")
    # Hidden names are ours (the lock, a temporary file of a killed start) or the desktop's.
    files = sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
    if files:
        raise RunDirError(
            f"{run_dir} holds files ({', '.join(files[:5])}) but no {RESOLVED}: it is not a run directory. "
            "Choose another run.name=... or move the files away."
        )


def _lock(run_dir: Path) -> None:
    """Take the run for this process.

    The descriptor is never closed on purpose: the lock ends with the process, however it ends. A POSIX record lock
    belongs to the process, so that forked data workers do not inherit it and this process may open its run again.
    """
    lock = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise RunDirError(
            f"another process is training in {run_dir}. Wait for it or stop it, or choose another run.name=..."
        ) from error


def _refuse_other(run_dir: Path, config: object, free: tuple[str, ...]) -> None:
    saved = _flatten(_read_yaml(run_dir / RESOLVED))
    asked = _flatten(_plain(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))))
    absent = "(absent)"
    differing = [
        f"  {key}: {saved.get(key, absent)} -> {asked.get(key, absent)}"
        for key in sorted(saved.keys() | asked.keys())
        if not any(key == name or key.startswith(f"{name}.") for name in free)
        and saved.get(key, absent) != asked.get(key, absent)
    ]
    if differing:
        raise RunDirError(
            "\n".join([f"{run_dir} was trained with another configuration (saved -> asked):", *differing])
            + f"\nGive this run its own folder with run.name=..., or delete {run_dir} to start it anew."
        )


def _plain(config: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _plain(OmegaConf.load(path))
    except Exception as error:  # the YAML reader's own errors share no base with OmegaConf's
        raise RunDirError(f"{path} cannot be read ({error}). Restore it, or delete {path.parent}.") from error


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level: {"run": {"seed": 0}} -> {"run.seed": 0}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _record_environment(path: Path) -> None:
    """Append this environment unless the run's last start had the same one; a resumed run may have seen several."""
    seen = json.loads(path.read_text()) if path.exists() else []
    now = environment()
    if not seen or seen[-1] != now:
        replace_text(path, json.dumps([*seen, now], indent=2) + "\n")


def environment() -> dict[str, str | None]:
    """Commit, versions and processors of this process, for logs of what it computes."""
    return {
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this file is tracked in, "+changes" if it differs; None outside a checkout."""

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
