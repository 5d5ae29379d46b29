"""From the `demos` section of a configuration to an opened replay store.

store = load_demonstrations(task, config.demos, horizon=16)
train, valid = WindowDataset(store, observation_keys=[...]).split(config.demos.validation_episodes)
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from domains.robotics.demonstrations.cache import cache_folder, one_maker
from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.download import file_sha256
from domains.robotics.demonstrations.episode import DemonstrationError, Episode, check_episode, task_widths
from domains.robotics.demonstrations.human import human_demonstrations
from domains.robotics.demonstrations.push_t_data import is_push_t_folder, push_t_episodes
from domains.robotics.demonstrations.replay_store import ReplayStore, check_store, open_store, write_store
from domains.robotics.demonstrations.schema import DemonstrationFile
from domains.robotics.demonstrations.scripted import scripted_demonstrations
from domains.robotics.environments.env_args import ABSOLUTE, check_env_args
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

HDF5 = (".hdf5", ".h5")


def load_demonstrations(
    task: TaskConfig, config: DemosConfig, *, horizon: int = 1, progress: bool = True
) -> ReplayStore:
    """The demonstrations that `config` names for `task`: made, downloaded or found, converted once, and checked.

    Processes that ask for the same ones wait for the first. `horizon`: steps that every episode must have.

    Raises:
        DemonstrationError: they cannot be had, are damaged, or are those of another task; names file and episode.
    """
    if config.source == "scripted":
        path = scripted_demonstrations(task, config, progress=progress)
    else:
        path = human_demonstrations(task, config, progress=progress)
    return check_store(store_of(path, task, cache_folder(config.cache)), task, horizon=horizon)


def store_of(path: Path, task: TaskConfig, cache: Path) -> ReplayStore:
    """The replay store of the file or folder `path`, with the observations of `task`, made in `cache` if need be.

    It is made anew when the source's size or time has changed and its checksum with them. Several tasks may share it:
    environment and kind of action are compared at every use.
    """
    is_push_t = path.suffix == ".npz" or is_push_t_folder(path)
    if is_push_t and task.simulator != "push_t":
        raise DemonstrationError(f"{path} has demonstrations of PushT, the task is {task.name}")
    keys = [*task.observations, *task.images]
    name = hashlib.sha256("\n".join([str(path.resolve()), *keys]).encode()).hexdigest()[:12]
    store_path = cache / "stores" / f"{path.stem}-{name}.zarr"
    with one_maker(store_path):
        size, changed = _size_and_time(path)
        if store_path.exists():
            store = open_store(store_path)
            same = store.source["size"] == size and store.source["changed"] == changed
            if same or store.source["sha256"] == _sha256(path):
                _same_environment(task, store.env_args, path)
                return store
        source = {"name": str(path), "size": size, "changed": changed, "sha256": _sha256(path)}
        if path.suffix in HDF5:
            with DemonstrationFile(path) as file:
                _same_environment(task, file.env_args, path)
                episodes = _checked(file.episodes(keys), task)
                return write_store(store_path, episodes, env_args=file.env_args, source=source)
        if is_push_t:
            episodes = _checked(push_t_episodes(path, keys), task)
            return write_store(store_path, episodes, env_args=None, source=source)
    raise DemonstrationError(
        f"{path} is of no known kind: give an HDF5 file of robomimic's schema ({' or '.join(HDF5)}), "
        "or PushT's replay as a zarr folder, .npz or the published .zip"
    )


def _checked(episodes: Iterator[Episode], task: TaskConfig) -> Iterator[Episode]:
    for episode in episodes:
        yield check_episode(episode, widths=task_widths(task), action_dim=task.action_dim)


def _same_environment(task: TaskConfig, env_args: Mapping[str, Any] | None, path: Path) -> None:
    """Refuse a file of another environment or kind of action; one that names no environment is taken as it is."""
    if env_args is None:
        return
    if task.simulator == "block_push":
        absolute = bool(env_args.get("env_kwargs", {}).get(ABSOLUTE))
        if absolute != task.absolute_actions:
            raise DemonstrationError(
                f"{path}: the file has task.absolute_actions={absolute}, the task task.absolute_actions="
                f"{task.absolute_actions}: choose the other"
            )
    if task.simulator != "robosuite":
        return
    try:
        check_env_args(task, env_args, source=str(path))
    except ConfigError as error:
        raise DemonstrationError(
            f"{error}. Absolute actions are made from displacements by "
            f"python -m domains.robotics.collect task=<name> task.absolute_actions=true states={path} out=<new file>"
            if "absolute_actions" in str(error)
            else str(error)
        ) from error


def _files(path: Path) -> Sequence[Path]:
    return sorted(place for place in path.rglob("*") if place.is_file()) if path.is_dir() else [path]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and the time of the last change in nanoseconds, of a file or of a folder's files."""
    found: list[Any] = [place.stat() for place in _files(path)]
    return sum(entry.st_size for entry in found), max((entry.st_mtime_ns for entry in found), default=0)


def _sha256(path: Path) -> str:
    """Of a file; of a folder that of its files' names and checksums."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{place.relative_to(path)} {file_sha256(place)}" for place in _files(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
