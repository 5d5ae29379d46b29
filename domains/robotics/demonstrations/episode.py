"""One demonstration in memory, and what makes it unusable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.robotics.task import TaskConfig
from drifting.training.errors import TrainingError


class DemonstrationError(TrainingError):
    """Demonstrations are missing, damaged, of another task, or cannot be made; the message names file and episode."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What was seen before each of T steps and what was done. `where` names file and episode in messages.

    `states` are the simulator's own, flattened; None where the source has none. `actions` are the labels;
    `executed` is what the simulator received, where noise made it another. `next_observations` follow each step;
    without them the observations of the next step do, and the last ones are repeated.
    """

    observations: Mapping[str, NDArray[Any]]  # {key: [T, ...]}
    actions: NDArray[Any]  # [T, A]
    states: NDArray[Any] | None = None  # [T, S]
    rewards: NDArray[Any] | None = None  # [T]
    dones: NDArray[Any] | None = None  # [T]
    next_observations: Mapping[str, NDArray[Any]] | None = None  # {key: [T, ...]}
    executed: NDArray[Any] | None = None  # [T, A]
    attributes: Mapping[str, str] = field(default_factory=dict)  # such as robosuite's model_file
    where: str = "episode"

    def __len__(self) -> int:
        return len(self.actions)


def check_episode(
    episode: Episode, *, widths: Mapping[str, int | None] | None = None, action_dim: int | None = None
) -> Episode:
    """Return the episode if everything in it is finite, as long as its actions, and as wide as asked.

    Args:
        episode: the episode; all its observations are checked, whether asked for or not.
        widths: observation keys that must be there, and their widths [T, width]; None for any shape.
        action_dim: A.

    Raises:
        DemonstrationError: naming file, episode, array and what was expected.
    """
    at = episode.where
    if episode.actions.ndim != 2:
        raise DemonstrationError(f"{at}: actions must be [T, A], got {list(episode.actions.shape)}")
    steps, width = episode.actions.shape
    if action_dim is not None and width != action_dim:
        raise DemonstrationError(f"{at}: actions must have {action_dim} dimensions for this task, got {width}")
    named = {f"obs/{key}": value for key, value in episode.observations.items()}
    named |= {f"next_obs/{key}": value for key, value in (episode.next_observations or {}).items()}
    for name in ("actions", "states", "rewards", "dones", "executed"):
        if (array := getattr(episode, name)) is not None:
            named[name] = array
    for name, array in named.items():
        if len(array) != steps:
            raise DemonstrationError(f"{at}: {name} has {len(array)} steps, actions have {steps}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DemonstrationError(f"{at}: {name} is NaN or infinite at step {step}")
    for key, expected in (widths or {}).items():
        if key not in episode.observations:
            raise DemonstrationError(f"{at}: no observation {key!r}; it has {listed(episode.observations)}")
        shape = episode.observations[key].shape[1:]
        if expected is not None and shape != (expected,):
            raise DemonstrationError(f"{at}: observation {key!r} must be [T, {expected}], got [T, {_inner(shape)}]")
    return episode


def task_widths(task: TaskConfig) -> dict[str, int | None]:
    """The observations that the task's policy reads, for `check_episode`; images may have any size."""
    return {**task.observations, **dict.fromkeys(task.images)}


def listed(keys: object) -> str:
    """Names for a message."""
    return ", ".join(sorted(str(key) for key in keys)) or "none"  # type: ignore[attr-defined]


def _inner(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
