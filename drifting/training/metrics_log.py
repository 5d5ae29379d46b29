"""The figures of a run: `metrics.jsonl`, TensorBoard, and a progress bar (plain lines where there is no terminal).

The value of a drifting loss is nearly constant by construction: the drift is normalised to a fixed size before it
becomes the loss. It tells nothing about convergence and must not head the bar; `show` names figures that do, such as
the RMS of the drift before normalisation.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from drifting.training.atomic_file import replace_text
from drifting.training.errors import RunDirError
from drifting.training.step_timer import is_timing
from drifting.training.trackers import Tracker, open_tracker

# Seconds between two plain lines, so that a batch job's output stays readable.
LINE_SECONDS = 10.0


class MetricsLog:
    """Writes scalars by step; a context manager.

    Each line of metrics.jsonl is one object: "step", "seconds" of training including earlier starts, then the figures
    (null for NaN and infinities, which JSON does not have). `start` is the step that the run continues from: what an
    earlier process logged beyond it is dropped, so that a continued run's log is that of one never stopped.
    A `tracker` gets the same figures and is finished with the log.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total: int,
        start: int = 0,
        show: Sequence[str] = ("drift_rms",),
        tracker: Tracker | None = None,
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._total = total
        self._show = tuple(show)
        self._tracker = tracker
        self._earlier_seconds = _rewind(self._path, start)
        self._began = time.monotonic()
        self._last_line = -math.inf
        self._file = self._path.open("a", encoding="utf-8")
        # Events of a killed process are hidden from the first step that is logged again.
        self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)  # type: ignore[no-untyped-call]
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the files, the bar and the tracker, which is told whether the run failed."""
        self._file.close()
        self.tensorboard.close()  # type: ignore[no-untyped-call]
        if self._bar is not None:
            self._bar.close()
        if self._tracker is not None:
            self._tracker.finish(failed=failed)

    def write(self, step: int, figures: Mapping[str, float | Tensor]) -> None:
        """Log scalars after `step` steps; tensors, of shape () on any device, are fetched together in one transfer.

        Raises ValueError for a tensor that is no scalar and for the names step and seconds, which the log sets itself.
        """
        values = _fetch(figures)
        seconds = self._earlier_seconds + time.monotonic() - self._began
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **finite}) + "\n")
        self._file.flush()
        # One event for all: with hundreds of figures, one each would take longer than a small step.
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self.tensorboard.file_writer.add_summary(summary, step)  # type: ignore[union-attr,attr-defined]
        if self._tracker is not None:
            self._tracker.log(step, values)
        self._display(step, seconds, {name: f"{values[name]:.4g}" for name in self._show if name in values})

    def _display(self, step: int, seconds: float, shown: dict[str, str]) -> None:
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or step >= self._total:
            self._last_line = now
            text = "".join(f"  {name} {value}" for name, value in shown.items())
            sys.stderr.write(f"step {step}/{self._total}  {seconds:.0f} s{text}\n")
            sys.stderr.flush()


class SilentLog:
    """The log of the ranks that do not write: the interface of `MetricsLog`, without files, bar or lines."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self, *, failed: bool = False) -> None:
        """Nothing is open."""

    def write(self, step: int, figures: Mapping[str, float | Tensor]) -> None:
        """Nothing is written or fetched."""


def open_log(
    run_dir: Path,
    *,
    total: int,
    start: int = 0,
    show: Sequence[str] = ("drift_rms",),
    main: bool = True,
    tracker: str = "none",
    project: str = "drifting",
    config: Mapping[str, Any] | None = None,
) -> MetricsLog | SilentLog:
    """The log of a run on the `main` rank, which alone writes, and one that does nothing on the others.

    Args:
        run_dir: of the run.
        total: steps of the run.
        start: step that the run continues from.
        show: figures of the progress bar.
        main: whether this rank writes.
        tracker: none, wandb or trackio.
        project: of the tracker.
        config: of the run, for the tracker; primitives, nested.

    Raises:
        ConfigError: an unknown tracker, or one that is not installed; on the main rank.
    """
    if not main:
        return SilentLog()
    opened = open_tracker(tracker, run_dir, project=project, config=config)
    return MetricsLog(run_dir, total=total, start=start, show=show, tracker=opened)


def read_metrics(run_dir: Path, *, timings: bool = True) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut by a kill is left out, no file is no lines.

    Without `timings` what is left is the same in every run of the same command.
    """
    path = run_dir / "metrics.jsonl"
    lines = _parse(path, path.read_text(encoding="utf-8")) if path.exists() else []
    if timings:
        return lines
    return [{key: line[key] for key in line if key != "seconds" and not is_timing(key)} for line in lines]


def _fetch(figures: Mapping[str, float | Tensor]) -> dict[str, float]:
    for name, value in figures.items():
        if name in ("step", "seconds"):
            raise ValueError(f"figures must not be named {name}: the log sets it itself")
        if isinstance(value, Tensor) and value.shape != ():
            raise ValueError(f"figure {name} must be a scalar tensor of shape (), got {tuple(value.shape)}")
    tensors = {name: value.detach() for name, value in figures.items() if isinstance(value, Tensor)}
    # All on the device where most of them live anyway: one synchronisation whatever their number.
    device = next((value.device for value in tensors.values() if value.device.type != "cpu"), torch.device("cpu"))
    same = [value.to(device, torch.float64) for value in tensors.values()]
    fetched = dict(zip(tensors, torch.stack(same).tolist(), strict=True)) if same else {}
    return {name: fetched[name] if name in fetched else float(value) for name, value in figures.items()}


def _rewind(path: Path, start: int) -> float:
    """Drop the lines beyond step `start`; returns the seconds of training up to the last line that stays."""
    if not path.exists():
        return 0.0
    text = path.read_text(encoding="utf-8")
    kept = [line for line in _parse(path, text) if line["step"] <= start]
    rewritten = "".join(json.dumps(line) + "\n" for line in kept)
    if rewritten != text:
        replace_text(path, rewritten)
    return float(kept[-1]["seconds"]) if kept else 0.0


def _parse(path: Path, text: str) -> list[dict[str, Any]]:
    # Only a line that ends with its newline was written whole.
    *lines, _cut = text.split("\n")
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunDirError(f"{path}, line {number}, is not JSON ({error}). Repair or delete that line.") from error
    return parsed
