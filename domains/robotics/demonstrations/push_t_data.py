"""The human demonstrations of PushT that Diffusion Policy published: a zarr v2 folder, or its arrays as one .npz.

    data/action [N, 2]  data/state [N, 5]  data/keypoint [N, 9, 2]  data/img [N, 96, 96, 3]  meta/episode_ends [E]

`state` is (pusher x, y, T x, y, angle), pixels and radians. 206 episodes, 25,650 steps at 10 Hz.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from domains.robotics.demonstrations.episode import DemonstrationError, Episode, check_episode, listed

# SHA-256 of the float32 array `action` of the published data; no checksum of the archive was published.
PUBLISHED_ACTIONS = "6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f"
OBSERVATIONS = ("keypoint", "agent_pos", "state", "image")


def is_push_t_folder(path: Path) -> bool:
    """Whether the folder has the layout above."""
    return (path / "data" / "action").is_dir() and (path / "meta" / "episode_ends").is_dir()


def push_t_episodes(path: Path, keys: Sequence[str]) -> Iterator[Episode]:
    """The episodes, with the observations `keys` of `OBSERVATIONS`: keypoint [T, 18], agent_pos [T, 2], state, image.

    Raises DemonstrationError naming the file, and where it can the episode: another layout, chunks that are missing,
    numbers that are not finite, episode ends that do not fit, pictures in a file that has none.
    """
    if unknown := [key for key in keys if key not in OBSERVATIONS]:
        raise DemonstrationError(f"{path}: no observation {listed(unknown)}; PushT has {listed(OBSERVATIONS)}")
    needed = ["action", "state", "keypoint", *(["img"] if "image" in keys else [])]
    arrays = _npz(path, needed) if path.suffix == ".npz" else _zarr(path, needed)
    ends = np.asarray(arrays["episode_ends"]).astype(np.int64)
    steps = len(arrays["action"])
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any() or ends[-1] != steps:
        raise DemonstrationError(
            f"{path}: meta/episode_ends must rise from above 0 to the {steps} steps of data/action"
        )
    if short := [key for key in needed if arrays[key].shape[0] != steps]:
        raise DemonstrationError(f"{path}: {listed(short)} must have the {steps} steps of action")
    for index, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        state = arrays["state"][start:end]
        observations: dict[str, NDArray[Any]] = {
            "keypoint": arrays["keypoint"][start:end].reshape(end - start, -1),
            "agent_pos": state[:, :2],
            "state": state,
        }
        if "image" in keys:
            observations["image"] = np.rint(arrays["img"][start:end]).astype(np.uint8)
        yield check_episode(
            Episode(
                observations={key: observations[key] for key in keys},
                actions=arrays["action"][start:end],
                states=state,
                where=f"{path} episode_{index}",
            )
        )


def actions_digest(path: Path) -> str:
    """SHA-256 of the array `action`, to be compared with `PUBLISHED_ACTIONS`."""
    action = np.concatenate([episode.actions for episode in push_t_episodes(path, ["agent_pos"])])
    return hashlib.sha256(np.ascontiguousarray(action, np.float32).tobytes()).hexdigest()


def _npz(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            _has(path, file.files, [*needed, "episode_ends"])
            return {key: file[key] for key in (*needed, "episode_ends")}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # a .npy is no context manager
        raise DemonstrationError(f"{path} cannot be read, it is damaged or no .npz: {error}") from error


def _zarr(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """Low-dimensional arrays in memory, images as they are in the folder."""
    try:
        root: Any = zarr.open_group(path, mode="r")
        _has(path, list(root["data"].array_keys()), needed)
        arrays = {key: root["data"][key] for key in needed} | {"episode_ends": root["meta"]["episode_ends"]}
        for key, array in arrays.items():
            # A chunk that is not there would read as zeros.
            if array.nchunks_initialized != array.nchunks:
                have, all_of = array.nchunks_initialized, array.nchunks
                raise DemonstrationError(
                    f"{path}: {key} is incomplete, {have} of {all_of} chunks are there; copy it again"
                )
        return {key: array if key == "img" else array[:] for key, array in arrays.items()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DemonstrationError(f"{path} is no PushT replay, or damaged: {error}") from error


def _has(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [key for key in needed if key not in found]:
        hint = " Pictures are in the zarr folder of the published archive." if "img" in missing else ""
        raise DemonstrationError(f"{path}: no {listed(missing)}; it has {listed(found)}.{hint}")
