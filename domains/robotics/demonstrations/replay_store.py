"""The replay store: all episodes of one source end to end, as zarr v3, from which windows are cut.

    data/<key> [N, ...]      an observation; data/actions [N, A]; data/states [N, S] where the source has them
    meta/episode_ends [E]    where each episode ends, exclusive
    attributes               env_args, episodes (names), source (name, size, time, sha256), sha256 of every array

A missing chunk of a zarr array reads as zeros; hence the checksums, and for images the count of chunks.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from domains.robotics.demonstrations.episode import DemonstrationError, Episode, check_episode, listed, task_widths
from domains.robotics.task import TaskConfig
from drifting.training.atomic_file import sync_folder, temporary_name

FRAMES_PER_CHUNK = 8  # random access reads two neighbouring frames: few more than those are decompressed
FORMAT = "drifting replay store 1"


@dataclass(frozen=True)
class ReplayStore:
    """An opened store. Low-dimensional arrays are in memory, images are read as they are asked for.

    `arrays`: {key: [N, ...]} the observations, float32 or, for images, uint8; `actions` [N, A] float32; `states`
    [N, S] float64 or None; `episode_ends` [E] int64; `env_args` as the source has them.
    """

    path: Path
    arrays: Mapping[str, "NDArray[np.float32] | zarr.Array[Any]"]
    actions: NDArray[np.float32]
    states: NDArray[np.float64] | None
    episode_ends: NDArray[np.int64]
    episodes: tuple[str, ...]
    env_args: dict[str, Any] | None
    source: dict[str, Any]

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """Where each episode begins, [E]."""
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.episodes)


def write_store(
    path: Path, episodes: Iterable[Episode], *, env_args: Mapping[str, Any] | None, source: Mapping[str, Any]
) -> ReplayStore:
    """Write, read back, compare, and only then give the store its name; replaces what stood there.

    Raises DemonstrationError where an episode is refused, or where what was read back differs.
    """
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        root: Any = zarr.open_group(temporary, mode="w", zarr_format=3)
        data, names, lengths = _Columns(root.create_group("data")), [], []
        for episode in episodes:
            data.append(check_episode(episode))
            names.append(episode.where.rpartition(" ")[2])
            lengths.append(len(episode))
        if not names:
            raise DemonstrationError(f"{source.get('name', path)} holds no episode")
        ends = np.cumsum(lengths).astype(np.int64)
        root.create_array("meta/episode_ends", data=ends)
        digests = data.finish() | {"episode_ends": hashlib.sha256(ends.tobytes()).hexdigest()}
        root.attrs.update(
            format=FORMAT,
            env_args=None if env_args is None else dict(env_args),
            episodes=names,
            source=dict(source),
            sha256=digests,
        )
        open_store(temporary, images=True)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)
    return open_store(path)


def open_store(path: Path, *, images: bool = False) -> ReplayStore:
    """Open a store and check every array against its checksum, images only if asked to (else their chunks are counted).

    Raises DemonstrationError where it is missing, of another format, or damaged; it may be deleted, it is made anew.
    """
    try:
        root: Any = zarr.open_group(path, mode="r")
        attributes = dict(root.attrs)
        if attributes.get("format") != FORMAT:
            raise DemonstrationError(f"{path} is no replay store of this version ({FORMAT}). Delete it to make it anew")
        digests: dict[str, str] = attributes["sha256"]
        ends = _checked(path, "episode_ends", root["meta/episode_ends"][:], digests)
        arrays: dict[str, Any] = {}
        for key in digests.keys() - {"episode_ends"}:
            array = root[f"data/{key}"]
            if array.dtype != np.uint8:
                arrays[key] = _checked(path, key, array[:], digests)
                continue
            if array.nchunks_initialized != array.nchunks or array.shape[0] != ends[-1]:
                raise DemonstrationError(
                    f"{path} is damaged: chunks of data/{key} are missing. Delete it to make it anew"
                )
            if images:
                _checked(path, key, array, digests)
            arrays[key] = array
    except (OSError, KeyError, ValueError) as error:  # zarr's own errors are among these
        raise DemonstrationError(
            f"{path} is no replay store, or damaged: {error}. Delete it to make it anew"
        ) from error
    actions, states = arrays.pop("actions"), arrays.pop("states", None)
    return ReplayStore(
        path, arrays, actions, states, ends, tuple(attributes["episodes"]), attributes["env_args"], attributes["source"]
    )


def check_store(store: ReplayStore, task: TaskConfig, *, horizon: int = 1) -> ReplayStore:
    """Return the store if a policy of `task` can learn from it.

    Raises DemonstrationError naming the source and what differs: an observation, the action's width, an episode
    shorter than the horizon.
    """
    name = store.source.get("name", store.path)
    for key, width in task_widths(task).items():
        if key not in store.arrays:
            raise DemonstrationError(
                f"{name}: no observation {key!r} for task {task.name}; it has {listed(store.arrays)}"
            )
        shape = store.arrays[key].shape[1:]
        side = task.images.get(key)
        expected = (width,) if side is None else (side, side, 3)
        if shape != expected:
            raise DemonstrationError(
                f"{name}: observation {key!r} must be {expected} for task {task.name}, got {shape}"
            )
    if store.actions.shape[1] != task.action_dim:
        raise DemonstrationError(
            f"{name}: actions must have {task.action_dim} dimensions for task {task.name}, got {store.actions.shape[1]}"
        )
    check_lengths(store, range(len(store)), horizon)
    return store


def check_lengths(store: ReplayStore, episodes: Sequence[int], horizon: int) -> None:
    """Raise DemonstrationError, naming source and episode, if one of the `episodes` has fewer steps than `horizon`."""
    lengths = (store.episode_ends - store.episode_starts)[list(episodes)]
    if (lengths < horizon).any():
        worst = int(np.argmin(lengths))
        raise DemonstrationError(
            f"{store.source.get('name', store.path)} {store.episodes[episodes[worst]]}: {lengths[worst]} steps are "
            f"shorter than the horizon of {horizon}"
        )


class _Columns:
    """The arrays of `data` while they grow: images go to the disk at once, all else when everything has come."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.digests: dict[str, Any] = {}
        self.parts: dict[str, list[NDArray[Any]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def append(self, episode: Episode) -> None:
        """Take an episode's arrays: float32, images as they are, states in full."""
        arrays = {key: value.astype(_stored_type(value)) for key, value in episode.observations.items()}
        arrays["actions"] = episode.actions.astype(np.float32)
        if episode.states is not None:
            arrays["states"] = episode.states.astype(np.float64)
        shapes = {key: array.shape[1:] for key, array in arrays.items()}
        self.shapes = self.shapes or shapes
        if differing := [key for key in self.shapes.keys() | shapes if self.shapes.get(key) != shapes.get(key)]:
            found = {key: shapes.get(key) for key in differing}
            raise DemonstrationError(
                f"{episode.where}: arrays per step must be as in the first episode, "
                f"{ {key: self.shapes.get(key) for key in differing} }, got {found}"
            )
        for key, array in arrays.items():
            self.digests.setdefault(key, hashlib.sha256()).update(array.tobytes())
            if array.dtype != np.uint8:
                self.parts.setdefault(key, []).append(array)
                continue
            if key not in self.group:
                chunks = (FRAMES_PER_CHUNK, *array.shape[1:])
                self.group.create_array(key, shape=(0, *array.shape[1:]), chunks=chunks, **_options(array))
            self.group[key].append(array)

    def finish(self) -> dict[str, str]:
        """Write what was kept back; the checksum of every array."""
        for key, parts in self.parts.items():
            whole = np.concatenate(parts)
            self.group.create_array(key, shape=whole.shape, chunks=whole.shape, **_options(whole))[:] = whole
        return {key: digest.hexdigest() for key, digest in self.digests.items()}


def _stored_type(array: NDArray[Any]) -> Any:
    return np.uint8 if array.dtype == np.uint8 else np.float32


def _options(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype, "config": {"write_empty_chunks": True}}


def _checked(path: Path, key: str, array: Any, digests: Mapping[str, str], rows: int = 1024) -> Any:
    digest = hashlib.sha256()
    for start in range(0, array.shape[0], rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    if digest.hexdigest() != digests[key]:
        raise DemonstrationError(f"{path} is damaged: {key} has another checksum. Delete it to make it anew")
    return array
