"""Published weights of self-supervised ResNets, by torchvision's names.

Two layouts exist: MoCo's training state, whose query encoder is `module.encoder_q.*` beside key encoder, queue and
optimiser, and a plain state dict, possibly under `state_dict`, possibly with `module.` before every name. No file is
ever unpickled into code: safetensors, or torch.load(weights_only=True).
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from domains.imagenet.hub import WeightsError, local_folder

if TYPE_CHECKING:
    from torchvision.models import ResNet

SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin")
PREFIXES = ("module.encoder_q.", "module.", "")  # of the encoder's names, the first that fits
# What is dropped: MoCo's key encoder and queue; classification layer or projection head, of one layer or several.
NOT_ENCODER = re.compile(r"module\.(encoder_k\..*|queue|queue_ptr)|(module\.(encoder_q\.)?)?fc\.(\d+\.)?(weight|bias)")
# Counts the training batches of a batch norm; without effect on its output, and absent from old files.
COUNTER = "num_batches_tracked"


def load_resnet_weights(
    network: "ResNet", path: str | os.PathLike[str], *, file: str | None = None, revision: str | None = None
) -> "ResNet":
    """Give `network` the weights of a file; its `fc` keeps those it has, it is no part of the features.

    Args:
        network: of torchvision, of the same shape.
        path: a file, a folder, or the id of a Hub repository.
        file: name of the file in folder or repository; None takes the only one there.
        revision: of the repository.

    Raises:
        WeightsError: the file is not to be had, is damaged, or has names or shapes that are not the network's: all of
            them are named.
    """
    source = _weights_file(path, file, revision)
    given = _encoder_weights(_read(source), source)
    expected = {name: value for name, value in network.state_dict().items() if not NOT_ENCODER.fullmatch(name)}
    missing = [name for name in expected if name not in given and not name.endswith(COUNTER)]
    unknown = [name for name in given if name not in expected]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = {"lacks": missing, "has unknown": unknown, "has other shapes:": shapes}
    if any(problems.values()):
        text = "; ".join(f"it {what} {', '.join(names)}" for what, names in problems.items() if names)
        raise WeightsError(f"{source} does not hold the weights of this ResNet: {text}")
    network.load_state_dict(given, strict=False)  # compared above: only fc and the counters may stay
    return network


def _weights_file(path: str | os.PathLike[str], file: str | None, revision: str | None) -> Path:
    if Path(path).expanduser().is_file():
        if file is not None:
            raise WeightsError(f"resnet={path} is a file already; leave out file={file}")
        return Path(path).expanduser()
    wanted = file or "|".join(f"*{suffix}" for suffix in SUFFIXES)
    folder = local_folder(path, files=(wanted,), revision=revision, setting="resnet")
    if file is not None:
        return folder / file
    found = sorted(f for f in folder.rglob("*") if f.name.endswith(SUFFIXES))
    if len(found) > 1:
        names = ", ".join(f.relative_to(folder).as_posix() for f in found)
        raise WeightsError(f"resnet={path} holds several files of weights, choose one by file=: {names}")
    return found[0]


def _read(source: Path) -> Mapping[str, Any]:
    try:
        if source.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source)
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{source} holds more than tensors and primitives, and is not read: {error}") from error
    except Exception as error:  # each format has its own errors for a damaged file
        raise WeightsError(f"{source} cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{source} must hold a state dict, got {type(content).__name__}")
    return content


def _encoder_weights(content: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """The encoder's weights by torchvision's names; heads and MoCo's other parts are left out by name."""
    prefix = next((p for p in PREFIXES if f"{p}conv1.weight" in content), None)
    if prefix is None:
        names, first = " or ".join(f"{p}conv1.weight" for p in PREFIXES), ", ".join(list(content)[:5])
        raise WeightsError(f"{source} must hold a ResNet by torchvision's names, with {names}; it has {first}, ...")
    kept = {name: value for name, value in content.items() if not NOT_ENCODER.fullmatch(name)}
    if odd := [name for name, value in kept.items() if not name.startswith(prefix) or not isinstance(value, Tensor)]:
        raise WeightsError(f"{source} holds what is no weight of the encoder {prefix}*: {', '.join(odd)}")
    return {name.removeprefix(prefix): value for name, value in kept.items()}
