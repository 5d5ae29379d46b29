"""Everything a run needs to continue as if it had never stopped, in one file per checkpoint.

    checkpoint = Checkpoint(run_dir, keep=3, model=generator, ema=ema, optimizer=optimizer, state=state, queue=queue)
    checkpoint.load_latest()                    # no-op in a fresh run directory
    ...
    checkpoint.save(state.step)

The random generators are included without being named. A checkpoint that cannot be used is never skipped silently.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from drifting.training.checkpoint_file import (
    CheckpointContent,
    checkpoint_path,
    checkpoint_paths,
    read_checkpoint,
    remove_temporaries,
    write_checkpoint,
)
from drifting.training.config import EmaConfig
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError
from drifting.training.random import RandomState

MAX_LISTED = 8

Module = TypeVar("Module", bound=nn.Module)
WAY_OUT = "Use the configuration it was trained with, or another run.name=..."


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and primitives, nested in dicts, lists and tuples."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Continue from `state`; raises, best before any change, if it does not fit."""
        ...


class Checkpoint:
    """Saves and restores the named `entries`; the last `keep` files stay in `<run_dir>/checkpoints`.

    For the one process that trains in `run_dir`: what a killed save left there is deleted.
    """

    def __init__(self, run_dir: Path, *, keep: int = 3, **entries: Stateful) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if "random" in entries:
            raise ValueError("entries must not be named random: the random generators are always saved under that name")
        self._run_dir = run_dir
        self._keep = keep
        self._entries: dict[str, Stateful] = {"random": RandomState(), **entries}
        remove_temporaries(run_dir)

    def save(self, step: int) -> Path:
        """Write the checkpoint of `step` done steps, then delete the oldest beyond `keep`.

        Raises CheckpointError, with every earlier checkpoint still there, if it cannot be written.
        """
        states = {name: entry.state_dict() for name, entry in self._entries.items()}
        path = checkpoint_path(self._run_dir, step)
        write_checkpoint(path, CheckpointContent(step=step, entries=states))
        for old in checkpoint_paths(self._run_dir)[: -self._keep]:
            old.unlink()
        return path

    def load_latest(self) -> int | None:
        """Restore every entry from the newest checkpoint and return its step; None, and no change, if there is none.

        All or nothing: raises CheckpointError with no entry changed if the file is damaged or does not fit.
        """
        paths = checkpoint_paths(self._run_dir)
        if not paths:
            return None
        content = read_checkpoint(paths[-1])
        if surplus := content.entries.keys() - self._entries.keys():
            raise CheckpointError(
                f"{paths[-1]} does not fit this run: it also holds {', '.join(sorted(surplus))}. {WAY_OUT}"
            )
        _restore(paths[-1], content, self._entries)
        return content.step


def load_entries(run_dir: Path, **entries: Stateful) -> int:
    """Restore only the named entries from the newest checkpoint of a run, to sample or evaluate it; returns its step.

    Raises CheckpointError, with no entry changed, if there is none or if it does not fit.
    """
    paths = checkpoint_paths(run_dir)
    if not paths:
        raise CheckpointError(f"{run_dir} has no checkpoint yet. Train first, or wait for the first one.")
    content = read_checkpoint(paths[-1])
    _restore(paths[-1], content, entries)
    return content.step


def load_average(run_dir: Path, module: Module, config: EmaConfig) -> tuple[Module, int]:
    """`module` with the first average of a run's newest checkpoint, frozen and in eval mode; and that step.

    For a module of the run's shape; errors as `load_entries`.
    """
    ema = Ema(module, config.decays, warmup=config.warmup)
    step = load_entries(run_dir, ema=ema)
    module.load_state_dict(ema.model().state_dict())
    return module.eval().requires_grad_(False), step


def _restore(path: Path, content: CheckpointContent, entries: Mapping[str, Stateful]) -> None:
    """Weights are checked beforehand and cannot fail; the rest goes first, and is put back if one of it refuses."""
    problems = [f"it holds no {name}" for name in entries if name not in content.entries]
    weights = {name: entry for name, entry in entries.items() if isinstance(entry, nn.Module | Ema)}
    for name, weight in weights.items():
        if name in content.entries:
            problems += _differences(name, saved=content.entries[name], here=weight.state_dict())
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        listed = "; ".join(problems[:MAX_LISTED] + more)
        raise CheckpointError(f"{path} does not fit this run: {listed}. {WAY_OUT}")
    changed: list[tuple[Stateful, Any]] = []
    for name, entry in entries.items():
        if name in weights:
            continue
        changed.append((entry, deepcopy(entry.state_dict())))
        try:
            entry.load_state_dict(content.entries[name])
        except Exception as error:
            for touched, before in reversed(changed):
                touched.load_state_dict(before)
            raise CheckpointError(
                f"{path} does not fit this run: {name} refuses its state: {error}. {WAY_OUT}"
            ) from error
    for name in weights:
        entries[name].load_state_dict(content.entries[name])


def _differences(where: str, *, saved: Any, here: Any) -> list[str]:
    """One line per key or tensor of a state_dict that is missing, surplus, or of another shape or type."""
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        missing = [f"{where}.{key} is missing" for key in here if key not in saved]
        surplus = [f"{where}.{key} {_describe(saved[key])} is surplus" for key in saved if key not in here]
        common = [
            line for k in here if k in saved for line in _differences(f"{where}.{k}", saved=saved[k], here=here[k])
        ]
        return missing + surplus + common
    if _describe(saved) != _describe(here):
        return [f"{where} is {_describe(saved)} there and {_describe(here)} here"]
    return []


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
