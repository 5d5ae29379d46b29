"""From what a checkpoint holds to the objects of a run: all of them, on every rank, or none.

What the ranks share (modules, averages, optimizers) is put together and sharded as the objects here are. The rest
belongs to a rank. On another number of ranks than saved it, an object that has `load_state_dicts` deals the states of
all of them anew; what is the same on every rank is loaded as it is; anything else is refused.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from drifting.training.checkpoint_file import CheckpointContent
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError
from drifting.training.fingerprint import Fingerprint
from drifting.training.pieces import KeyPath, join_pieces, map_tensors, tensors
from drifting.training.ranks import Ranks
from drifting.training.state import TrainState

MAX_LISTED = 8
WAY_OUT = "Use the configuration it was trained with, or another run.name=..."

SHARED = (nn.Module, Ema, torch.optim.Optimizer)
SAME_ON_EVERY_RANK = (TrainState, Fingerprint)


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and primitives, nested in dicts, lists and tuples."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Continue from `state`; raises, best before any change, if it does not fit."""
        ...


def is_saved_once(entry: object) -> bool:
    """Whether an entry says by `saved_once` that it is the same on every rank: rank 0 saves it for all."""
    return bool(getattr(entry, "saved_once", False))


@runtime_checkable
class Dealt(Protocol):
    """What can also continue on another number of ranks than saved it."""

    def load_state_dicts(self, states: Sequence[Any], *, rank: int, ranks: int) -> object:
        """Take the share of `rank`, out of `ranks`, in the states of all ranks that saved; copy what is kept."""
        ...


def bare(entry: Stateful) -> Stateful:
    """The module inside DistributedDataParallel and torch.compile, whose names do not depend on either."""
    while isinstance(entry, DistributedDataParallel) or hasattr(entry, "_orig_mod"):
        entry = entry.module if isinstance(entry, DistributedDataParallel) else entry._orig_mod
    return entry


def restore(path: Path, saved: Sequence[CheckpointContent], entries: Mapping[str, Stateful], ranks: Ranks) -> None:
    """Load what every rank saved into the entries of this one; a collective call.

    Weights are checked beforehand and cannot fail; the rest goes first, and is put back if one of it refuses. Raises
    CheckpointError on every rank, with nothing changed on any, if something does not fit on one of them.
    """
    states: dict[str, Any] = {}
    problems = [f"it holds no {name}" for name in entries if name not in saved[0].entries]
    for name, entry in entries.items():
        if name not in saved[0].entries:
            continue
        if not isinstance(entry, SHARED):
            states[name] = [content.entries[name] for content in saved]
            continue
        try:
            states[name] = _shared(name, entry, saved)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if isinstance(entry, nn.Module | Ema):
            problems += _differences(name, saved=states[name], here=entry.state_dict())
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    _agree(path, "; ".join(problems[:MAX_LISTED] + more), ranks)

    changed: list[tuple[Stateful, Any]] = []
    weights = [name for name, entry in entries.items() if isinstance(entry, nn.Module | Ema)]
    refusal, cause = "", None
    for name in (name for name in entries if name not in weights):
        changed.append((entries[name], deepcopy(entries[name].state_dict())))
        try:
            _load(entries[name], states[name], ranks)
        except Exception as error:
            refusal, cause = f"{name} refuses its state: {error}", error
            break
    try:
        _agree(path, refusal, ranks)
    except CheckpointError as error:
        for touched, before in reversed(changed):
            touched.load_state_dict(before)
        raise error from cause
    for name in weights:
        entries[name].load_state_dict(states[name])


def _shared(name: str, entry: Stateful, saved: Sequence[CheckpointContent]) -> Any:
    trees = [content.entries[name] for content in saved]
    if isinstance(entry, torch.optim.Optimizer):
        parameters = [parameter for group in entry.param_groups for parameter in group["params"]]

        def like(path: KeyPath, shape: torch.Size) -> DTensor | None:
            # ("state", number of the parameter, name): moments are sharded as their parameter is, counters are not.
            owner = parameters[path[1]] if path[0] == "state" and path[1] < len(parameters) else None
            return owner if isinstance(owner, DTensor) and owner.shape == shape else None
    else:
        here = tensors(entry.state_dict())

        def like(path: KeyPath, shape: torch.Size) -> DTensor | None:
            own = here.get(path)
            return own if isinstance(own, DTensor) and own.shape == shape else None

    return join_pieces(trees, [content.pieces.get(name, []) for content in saved], like)


def _load(entry: Stateful, states: Any, ranks: Ranks) -> None:
    """`states` of every rank that saved, or the one of a shared entry."""
    if isinstance(entry, SHARED):
        entry.load_state_dict(states)
    elif not all(states):  # saved once
        entry.load_state_dict(_copied(states[0]))
    elif len(states) == ranks.count:
        entry.load_state_dict(_copied(states[ranks.rank]))
    elif isinstance(entry, Dealt):
        entry.load_state_dicts(states, rank=ranks.rank, ranks=ranks.count)
    elif isinstance(entry, SAME_ON_EVERY_RANK) or len(states) > 1:
        if any(not _equal(states[0], other) for other in states[1:]):
            raise ValueError(
                f"it differs between the {len(states)} ranks that saved it and cannot be dealt to {ranks.count}; "
                f"continue on {len(states)}, or give {type(entry).__name__} a load_state_dicts"
            )
        entry.load_state_dict(_copied(states[0]))
    else:
        raise ValueError(
            f"one process saved it, and {ranks.count} ranks would all continue with its data and draws; continue on "
            f"one, or give {type(entry).__name__} a load_state_dicts"
        )


def _copied(state: Any) -> Any:
    """In memory: an object may keep what it loads, and the file may go."""
    return map_tensors(state, lambda _, tensor: tensor.clone())


def _agree(path: Path, problem: str, ranks: Ranks) -> None:
    """Raise on every rank if there is a problem on one."""
    found = [(rank, text) for rank, text in enumerate(ranks.exchange(problem)) if text]
    if found:
        rank, text = found[0]
        where = f"rank {rank}: " if ranks.count > 1 else ""
        raise CheckpointError(f"{path} does not fit this run: {where}{text}. {WAY_OUT}")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


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
