"""Networks as folders: config.json beside model.safetensors, read from a folder or the Hugging Face Hub.

    network.save_pretrained("folder")
    network = DiTGenerator.from_pretrained("folder")            # or "owner/name" on the Hub

config.json says which network it is and holds every field of its configuration; the weights are in one file, or in
several of at most `max_shard_size` with an index, as the Hub's tools write and read them.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from domains.imagenet.hub import WeightsError, local_folder
from domains.imagenet.parameter_names import listed
from drifting.training.atomic_file import replace_text
from drifting.training.config import typed
from drifting.training.errors import ConfigError

FORMAT = "drifting-models 1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model*.safetensors"
NETWORK_FILES = (CONFIG, f"{INDEX}|{WEIGHTS}", SHARDS)  # of a saved network, as `local_folder` takes them
THEIRS = "ema_params.msgpack"


class Pretrained(nn.Module):
    """Base of the networks that can be saved and loaded: built from one configuration dataclass, kept as `cfg`."""

    config_type: ClassVar[type]
    kinds: ClassVar[Mapping[str, Mapping[str, Any]]]
    """`kind` in config.json to the constructor's arguments besides the configuration."""
    cfg: Any

    @property
    def kind(self) -> str:
        """What config.json calls this network."""
        return next(iter(self.kinds))

    @classmethod
    def skeleton(cls, cfg: Any, kind: str) -> Self:
        """The network without memory for its parameters, on the meta device."""
        with torch.device("meta"), _NothingDrawn():
            return cls(cfg, **cls.kinds[kind])

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        setting: str = "name_or_folder",
    ) -> Self:
        """A saved network, in eval mode; its parameters require gradients, as those of a new one.

        Args:
            name_or_folder: a folder of `save_pretrained`, or `owner/name` of a Hub repository that holds one.
            revision: branch, tag or commit of the repository.
            device: where the parameters go.
            dtype: of the floating-point parameters; None keeps what is stored.
            setting: name of the argument or configuration key, for messages.

        Raises:
            WeightsError: nothing there, no network, a foreign or damaged file, or weights of another network.
        """
        if (Path(name_or_folder) / THEIRS).is_file():
            convert = f"python -m domains.imagenet.convert source={os.fspath(name_or_folder)} out=FOLDER"
            raise WeightsError(f"{setting}={os.fspath(name_or_folder)} holds the authors' files: run `{convert}` first")
        folder = local_folder(name_or_folder, files=NETWORK_FILES, revision=revision, setting=setting)
        kind, cfg = read_config(folder / CONFIG, cls)
        return cls.skeleton(cfg, kind).fill(read_weights(folder, device, dtype), folder)

    def fill(self, state: dict[str, Tensor], where: os.PathLike[str] | str) -> Self:
        """Take `state` as the parameters of this skeleton, without a copy; `where` they come from, for messages.

        Raises:
            WeightsError: missing or unknown names, other shapes, or no floating-point numbers.
        """
        check_fits(state, self, where)
        self.load_state_dict(state, assign=True)
        if left := [name for name, buffer in self.named_buffers() if buffer.is_meta]:
            raise RuntimeError(f"buffers {left} are not part of the state: a skeleton cannot have them")
        return self.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        source: Mapping[str, Any] | None = None,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Write config.json and the weights into `folder`, in place of an older network there.

        Args:
            folder: new, or that of an older network.
            dtype: of the floating-point parameters in the file; None keeps theirs.
            source: where the weights come from, primitives only; kept in config.json, never read.
            max_shard_size: bytes, or "5GB" and the like; above it the weights go into several files.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).unlink(missing_ok=True)  # written last: a folder without it is no network
        state = {name: value.detach() for name, value in self.state_dict().items()}
        if dtype is not None:
            state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        save_torch_state_dict(state, out, max_shard_size=max_shard_size)
        content = {"format": FORMAT, "kind": self.kind, "config": dataclasses.asdict(self.cfg)}
        replace_text(out / CONFIG, json.dumps(content | {"source": dict(source or {})}, indent=2) + "\n")
        for weights in out.glob(SHARDS):  # safetensors makes them private, whatever the umask says
            shutil.copymode(out / CONFIG, weights)


class _NothingDrawn(TorchFunctionMode):
    """Initial values are not drawn: parameters on the meta device have none, and torch takes seconds to see that."""

    DRAWS = frozenset(
        (nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_)
    ) | {Tensor.normal_, Tensor.uniform_}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: not readable, no JSON, or something else than an object; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def read_config(path: Path, network: type[Pretrained]) -> tuple[str, Any]:
    """Kind and configuration of a saved network.

    Raises:
        WeightsError: another library's file, another kind of network, or fields that are missing, unknown or invalid.
    """
    content = read_json(path)
    if content.get("format") != FORMAT:
        given = f"format {content['format']!r}" if "format" in content else f"the keys {listed(list(content))}"
        raise WeightsError(f"{path} is no configuration of this library: expected format {FORMAT!r}, got {given}")
    kind, fields = content.get("kind"), content.get("config")
    if kind not in network.kinds:
        known = " or ".join(network.kinds)
        raise WeightsError(f"{path} must describe a {network.__name__} (kind {known}), got kind {kind!r}")
    if not isinstance(fields, dict):
        raise WeightsError(f"{path} must hold the configuration under 'config', got {type(fields).__name__}")
    names = [field.name for field in dataclasses.fields(network.config_type)]
    if missing := [name for name in names if name not in fields]:
        raise WeightsError(f"{path}: config lacks {listed(missing)}; every field must be there, nothing is assumed")
    try:
        return kind, typed(fields, network.config_type)
    except ConfigError as error:
        raise WeightsError(f"{path}: config: {error}") from error


def read_weights(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors of a folder's one file, or of all that its index names.

    Raises:
        WeightsError: a file is missing, damaged or truncated, or does not hold what the index says; names it.
    """
    if not (folder / INDEX).exists():
        state = _read_safetensors(folder / WEIGHTS, device)
    else:
        index = read_json(folder / INDEX).get("weight_map")
        plain = isinstance(index, dict) and all(isinstance(f, str) and Path(f).name == f for f in index.values())
        if not isinstance(index, dict) or not plain:
            raise WeightsError(f"{folder / INDEX} must map each parameter to a file of its folder under 'weight_map'")
        state = {}
        for file in sorted(set(index.values())):
            state |= _read_safetensors(folder / file, device)
        if index.keys() != state.keys():
            names = listed(sorted(index.keys() ^ state.keys()))
            raise WeightsError(f"{folder / INDEX} and the files that it names do not agree on {names}")
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    return state


def _read_safetensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or damaged: {error}. Copy it again") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error


def check_fits(state: Mapping[str, Tensor], network: nn.Module, where: os.PathLike[str] | str) -> None:
    """Refuse a state whose names or shapes are not those of `network`.

    Raises:
        WeightsError: naming `where` and the parameters, with both shapes.
    """
    expected = network.state_dict()
    if missing := [name for name in expected if name not in state]:
        raise WeightsError(f"{os.fspath(where)} lacks {len(missing)} parameters: {listed(missing)}")
    if unknown := [name for name in state if name not in expected]:
        raise WeightsError(f"{os.fspath(where)} holds {len(unknown)} parameters too many: {listed(unknown)}")
    wrong = [
        f"{name} must be {tuple(value.shape)}, got {tuple(state[name].shape)}"
        for name, value in expected.items()
        if state[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(f"{os.fspath(where)} does not fit its configuration: {listed(wrong)}")
    if whole := [name for name, value in state.items() if not value.is_floating_point()]:
        raise WeightsError(f"{os.fspath(where)} must hold floating-point numbers, got others in {listed(whole)}")
