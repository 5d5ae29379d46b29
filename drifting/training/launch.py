"""The process before the first tensor: threads, device, determinism."""

import os

import torch

from drifting.training.config import RunConfig
from drifting.training.errors import ConfigError


def prepare(run: RunConfig) -> torch.device:
    """Set up this process for `run` and return its device; "auto" is CUDA where there is one, the CPU otherwise.

    Raises ConfigError if the asked device does not exist: a run never moves to another device silently.
    """
    torch.set_num_threads(run.threads)
    device = _device(run.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = not run.deterministic
    if run.deterministic:
        # cuBLAS reads it when CUDA starts and has no reproducible mode without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic)
    return device


def _device(asked: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    device = torch.device(asked)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(
            f"run.device={asked} is not available: this machine has {gpus} CUDA devices. Use run.device=auto."
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
