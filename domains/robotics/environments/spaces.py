"""What a simulator offers against what a task asks of it, and the checks of what is handed to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError


def observation_space(task: TaskConfig, *, numbers: Mapping[str, int], images: Sequence[str] = ()) -> spaces.Dict:
    """Float32 [d] for each key of `task.observations`, uint8 [side, side, 3] for each of `task.images`, in this order.

    `numbers` and `images` are what the simulator has. Raises ConfigError for a key that it does not have, or has in
    another width.
    """
    for key, width in task.observations.items():
        if numbers.get(key) != width:
            offered = ", ".join(f"{name}: {size}" for name, size in numbers.items())
            raise ConfigError(f"task.observations.{key} must be one of {{{offered}}}, got {key}: {width}")
    for key in task.images:
        if key not in images:
            offered = ", ".join(images) or "none"
            raise ConfigError(f"task.images.{key}: {task.name} has no such camera. It has: {offered}")
    low_dim = {key: spaces.Box(-np.inf, np.inf, (width,), np.float32) for key, width in task.observations.items()}
    pictures = {key: spaces.Box(0, 255, (side, side, 3), np.uint8) for key, side in task.images.items()}
    return spaces.Dict({**low_dim, **pictures})


def checked_action(action: Any, space: spaces.Box) -> np.ndarray:
    """The action as float64 [A]. Raises ValueError if it has another shape, or a number that is not finite."""
    values = np.asarray(action, dtype=np.float64)
    if values.shape != space.shape:
        raise ValueError(f"action must have shape {space.shape}, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"action must be finite, got {values.tolist()}")
    return values


def checked_state(state: Any, *lengths: int) -> np.ndarray:
    """The stored state as float64 [S]. Raises ValueError unless it is finite and has one of the `lengths`."""
    values = np.asarray(state, dtype=np.float64)
    if values.ndim != 1 or len(values) not in lengths:
        expected = " or ".join(map(str, lengths))
        raise ValueError(f'options["state"] must be one row of {expected} numbers, got shape {values.shape}')
    if not np.isfinite(values).all():
        raise ValueError(f'options["state"] must be finite, got {values.tolist()}')
    return values
