"""Everything a run needs to continue as if it had never stopped, on any number of ranks.

    checkpoint = Checkpoint(run_dir, keep=3, model=generator, ema=ema, optimizer=optimizer, state=state, queue=queue)
    checkpoint.load_latest()                    # no-op in a fresh run directory
    with checkpoint.in_background():            # optional: saves return when the state is copied
        ...
        checkpoint.save(state.step)

The random generators are included without being named. One process writes one file, many ranks write a folder; either
continues on any number of ranks. A damaged checkpoint is never skipped silently.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from drifting.training.atomic_file import discard
from drifting.training.checkpoint_file import (
    CheckpointContent,
    DamagedCheckpoint,
    checkpoint_path,
    checkpoint_paths,
    remove_temporaries,
    step_of,
    write_checkpoint,
)
from drifting.training.checkpoint_folder import SavedCheckpoint, write_folder
from drifting.training.config import EmaConfig
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError, ConfigError
from drifting.training.pieces import own_pieces
from drifting.training.random import RandomState, generators_digest
from drifting.training.ranks import Ranks
from drifting.training.restore import SHARED, WAY_OUT, Stateful, bare, is_saved_once, restore
from drifting.training.staging import Staging

Module = TypeVar("Module", bound=nn.Module)


class Checkpoint:
    """Saves and restores the named `entries`; the last `keep` checkpoints stay in `<run_dir>/checkpoints`.

    For the processes that train in `run_dir` alone: what a killed save left there is deleted. Every method is a
    collective call where torch.distributed is initialised. Modules, Ema and optimizers are shared by the ranks, however
    they are sharded; every other entry is each rank's own, or, if its `saved_once` is true, rank 0's for all.
    """

    def __init__(self, run_dir: Path, *, keep: int = 3, **entries: Stateful) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if "random" in entries:
            raise ValueError("entries must not be named random: the random generators are always saved under that name")
        self._run_dir = run_dir
        self._keep = keep
        self._ranks = Ranks.connect()
        if self._ranks.first:
            remove_temporaries(run_dir)
        seeds = self._ranks.exchange(generators_digest())
        self._random = RandomState(alike=len(set(seeds)) == 1)
        self._entries = {name: bare(entry) for name, entry in {"random": self._random, **entries}.items()}
        self._staging = Staging()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None

    def save(self, step: int) -> Path:
        """Write the checkpoint of `step` done steps, then delete the oldest beyond `keep`.

        Within `in_background` it returns when the state is copied; the next save, `wait` and the end of the block wait
        for the writing and raise its error.

        Raises CheckpointError, with every earlier checkpoint still there, if it cannot be written.
        """
        self.wait()
        states: dict[str, Any] = {
            name: {} if is_saved_once(entry) and not self._ranks.first else entry.state_dict()
            for name, entry in self._entries.items()
        }
        pieces = {}
        for name, entry in self._entries.items():
            if isinstance(entry, SHARED):
                states[name], pieces[name] = own_pieces(states[name], self._ranks.rank)
        if self._writer is None:
            return self._write(CheckpointContent(step, states, self._ranks.rank, self._ranks.count, pieces))
        content = CheckpointContent(step, self._staging.copy(states), self._ranks.rank, self._ranks.count, pieces)
        self._pending = self._writer.submit(self._write, content)
        return checkpoint_path(self._run_dir, step, ranks=self._ranks.count)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Saves within the block are written by a thread while training goes on; at its end the last one is complete.

        If the block fails, what fails in the thread as well is said but does not hide the first error.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as writer:
            self._writer = writer
            try:
                yield
            except BaseException:
                try:
                    self.wait()
                except CheckpointError as error:
                    sys.stderr.write(f"error: {error}\n")
                raise
            finally:
                self._writer = None
            self.wait()

    def wait(self) -> None:
        """Until the save in progress, if any, is complete; raises CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load_latest(self) -> int | None:
        """Restore every entry from the newest checkpoint and return its step; None, and no change, if there is none.

        A damaged one is set aside as `<name>.damaged`, with a warning, and the one before it is restored: the same one
        on every rank. All or nothing: raises CheckpointError with no entry changed if no checkpoint is whole, or if the
        newest whole one does not fit.
        """
        self.wait()
        saved = self._newest_whole()
        if saved is None:
            return None
        contents = [saved.load(rank) for rank in range(len(saved.files))]
        if surplus := contents[0].entries.keys() - self._entries.keys():
            raise CheckpointError(
                f"{saved.path} does not fit this run: it also holds {', '.join(sorted(surplus))}. {WAY_OUT}"
            )
        restore(saved.path, contents, self._entries, self._ranks)
        if len(contents) != self._ranks.count:
            self._say(
                f"{saved.path} was saved on {len(contents)} and continues on {self._ranks.count} ranks: weights are "
                f"resharded, what belongs to a rank is dealt anew; {self._random.dealing}"
            )
        return contents[0].step

    def _write(self, content: CheckpointContent) -> Path:
        path = checkpoint_path(self._run_dir, content.step, ranks=content.ranks)
        if content.ranks == 1:
            write_checkpoint(path, content)
        else:
            write_folder(path, content, self._ranks)
        if self._ranks.first:
            saved = checkpoint_paths(self._run_dir)
            twins = [other for other in saved if other != path and step_of(other) == content.step]
            for old in twins + [other for other in saved if other not in twins][: -self._keep]:
                discard(old)
        return path

    def _newest_whole(self) -> SavedCheckpoint | None:
        """The newest checkpoint that every rank finds whole; damaged ones that are newer are set aside."""
        names = self._ranks.exchange([path.name for path in checkpoint_paths(self._run_dir)])[0]
        damaged: list[tuple[Path, str]] = []
        for path in (self._run_dir / "checkpoints" / name for name in reversed(names)):
            damage = self._damage(path)
            if damage is None:
                for other, reason in damaged:
                    self._set_aside(other, reason, path)
                return SavedCheckpoint.open(path)
            damaged.append((path, damage))
        if not damaged:
            return None
        reasons = "; ".join(reason for _, reason in damaged)
        which = "it" if len(damaged) == 1 else "them"
        raise CheckpointError(f"{reasons}. No earlier checkpoint exists: delete {which} to start from step 0.")

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, the same answer on every rank; each file is read by one of them."""
        damage = refusal = None
        try:
            saved = SavedCheckpoint.open(path)
            for number in range(self._ranks.rank, len(saved.files), self._ranks.count):
                saved.verify(number)
        except DamagedCheckpoint as error:
            damage = f"{error.file} {error.reason}"
        except CheckpointError as error:
            refusal = str(error)
        reports = self._ranks.exchange([damage, refusal])
        for _, refused in reports:
            if refused is not None:
                raise CheckpointError(refused)
        return next((reason for reason, _ in reports if reason is not None), None)

    def _set_aside(self, path: Path, reason: str, whole: Path) -> None:
        if not self._ranks.first:
            return
        aside = path.with_name(f"{path.name}.damaged")
        discard(aside)
        path.rename(aside)
        self._say(
            f"WARNING: {reason}. It is kept as {aside.name}. The run continues from {whole.name}; steps that are lost "
            f"and trained again: {step_of(path) - step_of(whole)}."
        )

    def _say(self, text: str) -> None:
        if self._ranks.first:
            sys.stderr.write(f"{text}\n")


def load_entries(run_dir: Path, **entries: Stateful) -> int:
    """Restore only the named entries from the newest checkpoint of a run, to sample or evaluate it; returns its step.

    For one process, on a checkpoint of any number of ranks. Raises CheckpointError, with no entry changed, if there is
    none, or if the newest is damaged or does not fit: an older one never stands in for the one that was asked for.
    """
    paths = checkpoint_paths(run_dir)
    if not paths:
        raise CheckpointError(f"{run_dir} has no checkpoint yet. Train first, or wait for the first one.")
    return restore_entries(paths[-1], **entries)


def restore_entries(path: Path, **entries: Stateful) -> int:
    """As `load_entries`, from the checkpoint at `path`."""
    saved = SavedCheckpoint.open(path)
    for number in range(len(saved.files)):
        saved.verify(number)
    contents = [saved.load(number) for number in range(len(saved.files))]
    restore(path, contents, {name: bare(entry) for name, entry in entries.items()}, Ranks())
    return contents[0].step


def load_average(run_dir: Path, module: Module, config: EmaConfig, decay: float | None = None) -> tuple[Module, int]:
    """`module` with an average of a run's newest checkpoint, frozen and in eval mode; and that step.

    The first average, or that of `decay`. For a module of the run's shape; errors as `load_entries`, and ConfigError
    for a decay that the run has not.
    """
    if decay is not None and decay not in config.decays:
        raise ConfigError(f"decay must be one of the run's ema.decays={list(config.decays)}, got {decay}")
    ema = Ema(module, config.decays, warmup=config.warmup)
    step = load_entries(run_dir, ema=ema)
    module.load_state_dict(ema.model(decay).state_dict())
    return module.eval().requires_grad_(False), step
