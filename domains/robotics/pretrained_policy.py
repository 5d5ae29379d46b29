"""Policies as folders: config.json beside model.safetensors, nothing pickled.

    policy.save_pretrained("folder")
    policy = DriftingPolicy.from_pretrained("folder")
    policy = load_policy("folder")                              # whichever kind it is

config.json holds every field of the task and of the policy; the bounds of the normalisers are in the weights.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from domains.robotics.config import PolicyConfig
from domains.robotics.task import TaskConfig
from drifting.training.atomic_file import replacing
from drifting.training.config import typed
from drifting.training.errors import ConfigError, TrainingError

FORMAT = "drifting-models policy 1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class PolicyFileError(TrainingError):
    """A folder holds no policy, a damaged one, or one of another kind or library."""


@dataclass
class PolicyDescription:
    """What config.json describes. `demonstrations`: `demos.source` of the training."""

    task: TaskConfig
    policy: PolicyConfig
    demonstrations: str = "unknown"


def write_policy(folder: str | os.PathLike[str], description: PolicyDescription, state: dict[str, Tensor]) -> None:
    """Write both files into `folder`, made if need be, in place of an older policy there.

    The weights come last and go first: whatever kills the process, the folder holds the older policy, the new one, or
    none, and can be written again.
    Raises PolicyFileError if `folder` holds something else under these names.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    if (out / CONFIG).exists():
        _read_config(out / CONFIG)
    elif (out / WEIGHTS).exists():
        raise PolicyFileError(
            f"{out / WEIGHTS} is of another network: {out} has no {CONFIG}. Choose another folder, or delete the file"
        )
    content = {"format": FORMAT, **dataclasses.asdict(description)}
    with replacing(out / WEIGHTS) as weights, replacing(out / CONFIG) as config:
        weights.write(save({name: value.detach().cpu().contiguous() for name, value in state.items()}))
        weights.flush()  # a full disk is noticed while the older policy is still there
        config.write((json.dumps(content, indent=2) + "\n").encode())
        config.flush()
        (out / WEIGHTS).unlink(missing_ok=True)


def read_description(folder: str | os.PathLike[str]) -> PolicyDescription:
    """The task and the policy's configuration; PolicyFileError, naming the file, if it is not one of ours."""
    return _read_config(Path(folder) / CONFIG)


def read_into(policy: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Load the weights of `folder`; PolicyFileError, with nothing changed, if they are damaged or do not fit."""
    path = Path(folder) / WEIGHTS
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise PolicyFileError(f"{path} is truncated or damaged: {error}. Copy it again") from error
    except OSError as error:
        raise PolicyFileError(f"cannot read {path}: {error.strerror or error}") from error
    expected = policy.state_dict()
    if differing := sorted(expected.keys() ^ state.keys()):
        names = ", ".join(differing[:5])
        raise PolicyFileError(f"{path} does not fit its {CONFIG}: they do not agree on {len(differing)} names, {names}")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise PolicyFileError(
                f"{path} does not fit its {CONFIG}: {name} must be {tuple(value.shape)}, got {tuple(state[name].shape)}"
            )
    policy.load_state_dict(state)


def _read_config(path: Path) -> PolicyDescription:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyFileError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PolicyFileError(f"{path} is no JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise PolicyFileError(f"{path} is no policy of this library: expected format {FORMAT!r}, got {found!r}")
    try:
        return typed(content, PolicyDescription)
    except ConfigError as error:
        raise PolicyFileError(f"{path}: {error}") from error
