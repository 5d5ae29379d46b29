"""W&B or trackio beside the run's own files; each is imported only when asked for (`log.tracker`).

WANDB_MODE=offline keeps W&B's files in the run directory, for `wandb sync` later. trackio writes to its local database
(TRACKIO_DIR) unless TRACKIO_SPACE_ID names a Space. A continued run goes on in the same tracker run.
"""

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from drifting.training.atomic_file import replace_text
from drifting.training.config import TRACKERS
from drifting.training.errors import ConfigError

ID = "tracker_id"


class Tracker(Protocol):
    """Where figures go besides the run directory."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars after `step` steps."""
        ...

    def finish(self, *, failed: bool) -> None:
        """Send what is left."""
        ...


def open_tracker(kind: str, run_dir: Path, *, project: str, config: Mapping[str, Any] | None = None) -> Tracker | None:
    """The tracker of a run, None for "none"; continued if the run directory names one.

    Raises:
        ConfigError: an unknown kind, or one whose package is not installed.
    """
    if kind not in TRACKERS:
        raise ConfigError(f"log.tracker must be one of {', '.join(TRACKERS)}, got {kind!r}")
    if kind == "none":
        return None
    try:
        package = importlib.import_module(kind)
    except ImportError as error:
        raise ConfigError(
            f"log.tracker={kind} needs the package {kind}, which cannot be imported ({error}). "
            f"Run `pip install {kind}`, or use log.tracker=none."
        ) from error
    started = _Wandb if kind == "wandb" else _Trackio
    return started(package, run_dir, _identity(run_dir), project, dict(config or {}))


class _Wandb:
    def __init__(self, wandb: Any, run_dir: Path, identity: str, project: str, config: dict[str, Any]) -> None:
        self._run = wandb.init(
            project=project, name=run_dir.name, id=identity, dir=str(run_dir), config=config, resume="allow"
        )
        # W&B's own step must not go back, as it does when a killed run continues at its last checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, trackio: Any, run_dir: Path, identity: str, project: str, config: dict[str, Any]) -> None:
        # Runs are known by name there: a new run in a folder of an old name is another run.
        name = f"{run_dir.name}-{identity}"
        self._run = trackio.init(project=project, name=name, config=config, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish()


def _identity(run_dir: Path) -> str:
    path = run_dir / ID
    if not path.exists():
        replace_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text(encoding="utf-8").strip()
