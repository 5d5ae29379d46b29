"""Windows of H actions and To observations, cut from a replay store by Diffusion Policy's padding rules.

A window starts at step s of an episode of T steps, s = -(To - 1) .. T - H + (Ta - 1): its actions are those of steps
s .. s + H - 1, its observations those of the first To of them. Steps before the episode are its first step repeated,
steps after it its last. So the present, step s + To - 1, runs from the first step on, and a window may lie past the end
by as much as is not executed. Windows never span two episodes.

Shapes: B windows, H horizon, To observation steps, Ta executed steps, A action dimensions, W windows in all, N steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from domains.robotics.demonstrations.episode import listed
from domains.robotics.demonstrations.replay_store import ReplayStore, check_lengths
from domains.robotics.demonstrations.schema import drawn_episodes


@dataclass(frozen=True, slots=True)
class Windows:
    """`observations` {key: [B, To, ...]}, images uint8 [B, To, side, side, 3]; `actions` [B, H, A]."""

    observations: dict[str, Tensor]
    actions: Tensor

    def to(self, device: torch.device | str) -> "Windows":
        """The same on another device."""
        return Windows({key: value.to(device) for key, value in self.observations.items()}, self.actions.to(device))


class WindowDataset:
    """All windows of some episodes of a store; `batch(indices)` gathers any of them at once.

    Args:
        store: where the arrays come from.
        horizon: H.
        observation_steps: To.
        action_steps: Ta, at most H - To + 1.
        observation_keys: what a window shows; None for every observation of the store.
        episodes: which ones, by index; None for all.
        dtype: of actions and low-dimensional observations.
        image_memory: bytes; images that fit in are kept in memory (about 1 ms saved per frame and batch), others are
            read from the store as they are needed.

    Raises:
        ValueError: sizes that do not fit one another, or an unknown key or episode.
        DemonstrationError: an episode shorter than the horizon, named.
    """

    def __init__(
        self,
        store: ReplayStore,
        *,
        horizon: int = 16,
        observation_steps: int = 2,
        action_steps: int = 8,
        observation_keys: Sequence[str] | None = None,
        episodes: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        image_memory: float = 4e9,
    ) -> None:
        if not (observation_steps >= 1 and 1 <= action_steps <= horizon - observation_steps + 1):
            raise ValueError(
                "horizon must hold the observed and the executed steps, observation_steps >= 1 and "
                f"1 <= action_steps <= horizon - observation_steps + 1, got horizon={horizon}, "
                f"observation_steps={observation_steps}, action_steps={action_steps}"
            )
        keys = list(store.arrays) if observation_keys is None else list(observation_keys)
        if unknown := [key for key in keys if key not in store.arrays]:
            raise ValueError(f"observation_keys has {listed(unknown)}; {store.path} has {listed(store.arrays)}")
        self.store = store
        self.horizon, self.observation_steps, self.action_steps = horizon, observation_steps, action_steps
        self.arrays = _in_memory(store, keys, dtype, image_memory)
        self.actions = torch.from_numpy(store.actions).to(dtype)
        self._choose(range(len(store)) if episodes is None else episodes)

    def _choose(self, episodes: Sequence[int]) -> None:
        """Find the windows of these episodes."""
        self.episodes = [int(episode) for episode in episodes]
        if not self.episodes or len(set(self.episodes)) != len(self.episodes):
            raise ValueError(f"episodes must be one or more different ones, got {self.episodes}")
        if outside := [episode for episode in self.episodes if not 0 <= episode < len(self.store)]:
            raise ValueError(f"episodes must be in 0..{len(self.store) - 1}, got {outside}")
        check_lengths(self.store, self.episodes, self.horizon)
        first, end = self.store.episode_starts[self.episodes], self.store.episode_ends[self.episodes]
        lengths = end - first
        # Of window w: its first step, counted in the store, and the first and last step of its episode.
        before, after = self.observation_steps - 1, self.action_steps - 1
        counts = lengths - self.horizon + after + before + 1
        rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.start = torch.from_numpy(np.repeat(first - before, counts) + rank)
        self.first = torch.from_numpy(np.repeat(first, counts))
        self.last = torch.from_numpy(np.repeat(end - 1, counts))
        self.episode = torch.from_numpy(np.repeat(np.array(self.episodes), counts))

    def __len__(self) -> int:
        return len(self.start)

    def steps(self, indices: ArrayLike | Tensor, num: int) -> Tensor:
        """The store's steps that the first `num` of each window show, [B, num] int64."""
        index = torch.as_tensor(indices, device=self.start.device)
        span = self.start[index][:, None] + torch.arange(num, device=self.start.device)
        return span.clamp(self.first[index][:, None], self.last[index][:, None])

    @property
    def reads(self) -> bool:
        """Whether `batch` reads images from the store, which takes time."""
        return not all(isinstance(array, Tensor) for array in self.arrays.values())

    def batch(self, indices: ArrayLike | Tensor, keys: Iterable[str] | None = None) -> Windows:
        """The windows `indices` [B], each in 0 .. len(self) - 1; of the observations only those named by `keys`."""
        steps = self.steps(indices, self.horizon)
        seen = steps[:, : self.observation_steps]
        shown = self.arrays if keys is None else keys
        return Windows({key: _gather(self.arrays[key], seen) for key in shown}, self.actions[steps])

    def rows(self, key: str) -> Tensor:
        """An observation, or "actions", at every step of the chosen episodes once: [N, ...]; for statistics."""
        starts, ends = self.store.episode_starts[self.episodes], self.store.episode_ends[self.episodes]
        spans = [torch.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return _gather(self.actions if key == "actions" else self.arrays[key], torch.cat(spans).to(self.start.device))

    def split(
        self, validation_episodes: int | None = None, *, fraction: float | None = None, seed: int = 0
    ) -> tuple["WindowDataset", "WindowDataset | None"]:
        """Training and validation windows, of different episodes; None where no episode is held out.

        Give a number of episodes or a fraction of them (rounded, at least one); `seed` draws them.

        Raises:
            ValueError: neither or both are given, or no training episode remains.
        """
        if (validation_episodes is None) == (fraction is None):
            raise ValueError("give validation_episodes or fraction, not both")
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"fraction must be in (0, 1), got {fraction}")
        count = max(1, round((fraction or 0) * len(self.episodes))) if fraction is not None else validation_episodes
        held_out = drawn_episodes(len(self.episodes), int(count or 0), seed)
        train = [episode for place, episode in enumerate(self.episodes) if place not in held_out]
        valid = [episode for place, episode in enumerate(self.episodes) if place in held_out]
        return self.subset(train), self.subset(valid) if valid else None

    def subset(self, episodes: Sequence[int]) -> "WindowDataset":
        """The windows of some episodes of the store; shares the arrays."""
        other = object.__new__(WindowDataset)
        other.__dict__.update(self.__dict__)
        other._choose(episodes)
        return other.to(self.actions.device)

    def to(self, device: torch.device | str) -> Self:
        """Move what is in memory to `device`, where `batch` then gathers; images read from the store follow."""
        for name in ("actions", "start", "first", "last", "episode"):
            setattr(self, name, getattr(self, name).to(device))
        self.arrays = {
            key: array.to(device) if isinstance(array, Tensor) else replace(array, device=torch.device(device))
            for key, array in self.arrays.items()
        }
        return self


@dataclass(frozen=True)
class _StoredImages:
    """Images that stay in the store."""

    array: Any  # zarr [N, side, side, 3]
    device: torch.device

    def gather(self, steps: Tensor) -> Tensor:
        """[...] -> [..., side, side, 3]; every frame is read once."""
        needed, place = np.unique(steps.cpu().numpy(), return_inverse=True)
        frames = torch.from_numpy(np.asarray(self.array.oindex[needed]))
        return frames[torch.from_numpy(place.reshape(steps.shape))].to(self.device)


def _gather(array: Tensor | _StoredImages, steps: Tensor) -> Tensor:
    return array[steps] if isinstance(array, Tensor) else array.gather(steps)


def _in_memory(
    store: ReplayStore, keys: Sequence[str], dtype: torch.dtype, image_memory: float
) -> dict[str, Tensor | _StoredImages]:
    images = [key for key in keys if store.arrays[key].dtype == np.uint8]
    fits = sum(store.arrays[key].nbytes for key in images) <= image_memory
    loaded: Mapping[str, Tensor | _StoredImages] = {
        key: torch.from_numpy(store.arrays[key][:]) if fits else _StoredImages(store.arrays[key], torch.device("cpu"))
        for key in images
    }
    return {key: loaded[key] if key in loaded else torch.from_numpy(store.arrays[key]).to(dtype) for key in keys}
