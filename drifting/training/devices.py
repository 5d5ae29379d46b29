"""The device of a command that runs in one process; `launch` chooses those of ranks."""

import torch

from drifting.training.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device of that name; of "auto" CUDA where there is one, else the CPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # unknown name; built without CUDA
        raise ConfigError(f"device must be auto, cpu or a device of this machine, got {name!r}: {error}") from error
