"""robomimic's HDF5 schema, written and read.

    data                     attributes env_args (JSON), total (steps of all episodes); ours: collected (JSON)
    data/demo_<i>            attributes num_samples (T), model_file (robosuite: the MuJoCo model)
      obs/<key> [T, ...]  next_obs/<key> [T, ...]  actions [T, A]  rewards [T]  dones [T]  states [T, S]
      executed_actions [T, A]    ours: the labels in `actions` plus the noise that was executed
    mask/train, mask/valid   names of the episodes, as bytes

Images stand in `obs` alone: `next_obs` would double the file. robomimic reads such a file with load_next_obs=False.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.robotics.demonstrations.episode import DemonstrationError, Episode, check_episode, listed
from drifting.training.atomic_file import sync_folder, temporary_name

OPTIONAL = {"states": "states", "rewards": "rewards", "dones": "dones", "executed": "executed_actions"}


class DemonstrationWriter:
    """Writes episodes into `path`, which appears when the block ends without an error; before, nothing stands there.

    with DemonstrationWriter(path, environment.env_args) as writer:
        writer.write(episode)
    """

    def __init__(self, path: Path, env_args: Mapping[str, Any]) -> None:
        self.path, self.env_args = path, dict(env_args)
        self.temporary = temporary_name(path)
        self.steps: list[int] = []
        self.masks: dict[str, list[str]] = {}
        self.collected: dict[str, Any] = {}  # how the file came about, for people

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(self.temporary, "w")
        self.data = self.file.create_group("data")
        self.data.attrs["env_args"] = json.dumps(self.env_args, indent=1)
        return self

    def write(self, episode: Episode) -> str:
        """Append a checked episode; returns its name. Raises DemonstrationError as `check_episode` does."""
        check_episode(episode)
        name = f"demo_{len(self.steps)}"
        group = self.data.create_group(name)
        group.attrs["num_samples"] = len(episode)
        for key, value in episode.attributes.items():
            group.attrs[key] = value
        group.create_dataset("actions", data=episode.actions)
        for attribute, dataset in OPTIONAL.items():
            if (array := getattr(episode, attribute)) is not None:
                group.create_dataset(dataset, data=array)
        following = episode.next_observations
        for key, array in episode.observations.items():
            _write_observation(group, f"obs/{key}", array)
            if array.dtype != np.uint8:
                _write_observation(group, f"next_obs/{key}", shifted(array) if following is None else following[key])
        self.steps.append(len(episode))
        return name

    def split(self, validation_episodes: int, seed: int = 0) -> None:
        """Name the episodes of mask/valid, drawn with `seed`, and of mask/train; the others."""
        valid = drawn_episodes(len(self.steps), validation_episodes, seed)
        names = [f"demo_{index}" for index in range(len(self.steps))]
        self.masks = {
            "train": [name for index, name in enumerate(names) if index not in valid],
            "valid": [name for index, name in enumerate(names) if index in valid],
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.data.attrs["total"] = sum(self.steps)
                if self.collected:
                    self.data.attrs["collected"] = json.dumps(self.collected, indent=1)
                for name, members in self.masks.items():
                    self.file.create_dataset(f"mask/{name}", data=np.array(members, dtype="S"))
            self.file.close()
            if kind is None:
                _sync(self.temporary)
                self.temporary.replace(self.path)
                sync_folder(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)


class DemonstrationFile:
    """A file of robomimic's schema, or of robosuite's recorder (states and actions only), open for reading.

    `env_args` is None where the file names no environment. Raises DemonstrationError naming the file where it is
    missing, truncated, of another format, or without episodes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DemonstrationError(f"{path} does not exist or is no file; give the path of an HDF5 file")
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:  # truncated, another format, or open for writing elsewhere
            raise DemonstrationError(
                f"{path} cannot be read as HDF5, it is truncated or of another kind: {error}"
            ) from error
        data = self.file.get("data")
        if not isinstance(data, h5py.Group):
            self.file.close()
            raise DemonstrationError(f"{path} has no group 'data'; it is not a file of robomimic's schema")
        self.data = data
        numbered = [name for name in data if name.startswith("demo_") and name[5:].isdigit()]
        self.names = sorted(numbered, key=lambda name: int(name[5:]))
        if not self.names:
            found = listed(data)
            self.file.close()
            raise DemonstrationError(f"{path} holds no episode data/demo_<i>; it has {found}")
        written = data.attrs.get("env_args")
        self.env_args: dict[str, Any] | None = None if written is None else json.loads(written)
        self.collected: dict[str, Any] = json.loads(data.attrs.get("collected", "{}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def masks(self) -> dict[str, list[str]]:
        """Names of episodes by filter, such as train and valid; empty without a group `mask`."""
        return {key: [name.decode() for name in names] for key, names in self.file.get("mask", {}).items()}

    def episodes(self, keys: Sequence[str] | None = None) -> Iterator[Episode]:
        """Every episode, in order."""
        for name in self.names:
            yield self.episode(name, keys)

    def episode(self, name: str, keys: Sequence[str] | None = None) -> Episode:
        """One episode, with the observations `keys`, or all of them.

        Raises DemonstrationError, naming file and episode, where an array is missing, damaged or has another length.
        """
        where = f"{self.path} {name}"
        group = self.data[name]
        try:
            if "actions" not in group:
                raise DemonstrationError(f"{where}: no actions; it has {listed(group)}")
            following = None if keys is not None else _read_group(group, "next_obs", where, None)
            return check_episode(
                Episode(
                    observations=_read_group(group, "obs", where, keys),
                    actions=group["actions"][:],
                    next_observations=following or None,
                    attributes={key: value for key, value in group.attrs.items() if key != "num_samples"},
                    where=where,
                    **{attribute: group[dataset][:] for attribute, dataset in OPTIONAL.items() if dataset in group},
                )
            )
        except OSError as error:  # a chunk that is not there
            raise DemonstrationError(f"{where}: cannot be read, the file is damaged: {error}") from error


def shifted(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """What follows each of the T steps, the last one repeated: [T, ...] -> [T, ...]."""
    return np.concatenate([array[1:], array[-1:]])


def drawn_episodes(total: int, count: int, seed: int) -> set[int]:
    """Indices of `count` of `total` episodes, drawn without replacement.

    Raises ValueError unless at least one episode remains.
    """
    if not 0 <= count < total:
        raise ValueError(f"validation episodes must be in 0..{total - 1} of {total} episodes, got {count}")
    return set(np.random.default_rng(seed).permutation(total)[:count].tolist())


def _write_observation(group: h5py.Group, name: str, array: NDArray[np.generic]) -> None:
    """Images are compressed frame by frame."""
    if array.dtype == np.uint8:
        group.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip", compression_opts=1)
    else:
        group.create_dataset(name, data=array)


def _read_group(group: h5py.Group, name: str, where: str, keys: Iterable[str] | None) -> dict[str, NDArray[np.generic]]:
    found = group.get(name, {})
    wanted = list(found) if keys is None else list(keys)
    if missing := [key for key in wanted if key not in found]:
        hint = (
            ". It has simulator states, from which they can be made: "
            "python -m domains.robotics.collect task=<name> states=<this file> out=<new file>"
        )
        raise DemonstrationError(
            f"{where}: no observation {listed(missing)}; it has {listed(found)}{hint if 'states' in group else ''}"
        )
    return {key: found[key][:] for key in wanted}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
