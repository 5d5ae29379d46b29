"""What the authors publish (lambertae/drifting; Hub repository Goodeat/drifting): metadata.json and ema_params.msgpack.

One folder per network, `models/gen/jax/<name>` or `models/mae/jax/<name>` in the repository, `params_ema` in a training
run. metadata.json holds kind ("gen" or "mae"), backend "jax", model_config, and where the weights come from. The
msgpack file holds the tree of EMA parameters alone, float32, with no key around it; a key "params" or, in a training
checkpoint, "ema_params" is followed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.imagenet.flax_msgpack import flatten, read_tree, write_tree
from domains.imagenet.flax_names import generator_names, mae_names
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.hub import WeightsError
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.parameter_names import listed
from domains.imagenet.pretrained import THEIRS, Pretrained, read_json
from drifting.training.atomic_file import replace_text
from drifting.training.config import typed

METADATA, PARAMETERS = "metadata.json", THEIRS

# their field of model_config -> ours
GENERATOR_FIELDS = {
    "in_channels": "channels",
    "input_size": "size",
    "patch_size": "patch",
    "hidden_size": "hidden",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "num_classes": "num_classes",
    "n_cls_tokens": "context_tokens",
    "noise_coords": "style_tokens",
    "noise_classes": "style_codes",
    "use_rmsnorm": "rms_norm",
    "use_swiglu": "swiglu",
    "use_qknorm": "qk_norm",
    "use_rope": "rotary",
}
GENERATOR_OPTIONS = {"attn_fp32": "attention_float32", "use_remat": "checkpoint_blocks"}  # of arithmetic, not of shape
GENERATOR_TWINS = {"cond_dim": "hidden_size", "out_channels": "in_channels"}  # always equal
MAE_FIELDS = {
    "in_channels": "channels",
    "base_channels": "base_channels",
    "layers": "blocks",
    "input_patch_size": "space_to_depth",
    "patch_size": "mask_patch",
}
NO_WEIGHTS = {"use_bf16", "dropout_prob"}  # how they trained: autocast and dropout are no part of our networks
MAX_GROUPS = 32  # fixed in theirs


@dataclass(frozen=True)
class Artefact:
    """A network of ours with the authors' weights, and what metadata.json says about them."""

    network: Pretrained
    metadata: dict[str, Any]


def is_artefact(folder: Path) -> bool:
    """Whether the folder holds one."""
    return (folder / PARAMETERS).is_file()


def read_artefact(folder: Path, *, encoder_only: bool = False) -> Artefact:
    """Read the authors' files; `encoder_only` leaves out the decoder and the head of an auto-encoder.

    Raises:
        WeightsError: damaged files, or a network that ours is not; names the file and the field or parameter.
    """
    metadata = read_json(folder / METADATA)
    where = folder / PARAMETERS
    theirs = flatten(_parameters(read_tree(where)), where)
    kind, fields = metadata.get("kind"), metadata.get("model_config")
    if kind not in ("gen", "mae") or not isinstance(fields, dict):
        given = f"kind {kind!r} and the keys {listed(list(metadata))}"
        raise WeightsError(f"{folder / METADATA} must have kind gen or mae and a model_config, got {given}")
    try:
        if kind == "gen":
            cfg = generator_config(fields)
            network, names = DiTGenerator.skeleton(cfg, "generator"), generator_names(cfg)
        else:
            cfg = mae_config(fields, num_classes=len(theirs["fc/bias"]) if "fc/bias" in theirs else 0)
            network = MaskedAutoencoder.skeleton(cfg, "mae_encoder" if encoder_only else "mae")
            names = mae_names(len(cfg.blocks))
    except ValueError as error:
        raise WeightsError(f"{folder / METADATA}: model_config: {error}") from error
    if encoder_only:
        if kind == "gen":
            raise WeightsError(f"encoder_only is for masked auto-encoders, {folder} holds a generator")
        theirs = {name: value for name, value in theirs.items() if name.startswith("encoder/")}
    return Artefact(network.fill(names.to_ours(theirs, str(where)), where), metadata)


def write_artefact(network: Pretrained, folder: Path, source: Mapping[str, Any]) -> None:
    """Write the authors' two files; `source` goes into metadata.json.

    Raises:
        WeightsError: the network has something that theirs has not.
    """
    if isinstance(network, DiTGenerator):
        kind, fields, names = "gen", _their_generator_config(network.cfg), generator_names(network.cfg)
    elif isinstance(network, MaskedAutoencoder):
        kind, fields, names = "mae", _their_mae_config(network), mae_names(len(network.cfg.blocks))
    else:
        raise TypeError(f"no flax layout of a {type(network).__name__}")
    folder.mkdir(parents=True, exist_ok=True)
    write_tree(folder / PARAMETERS, names.to_theirs(network.state_dict(), str(folder)))
    metadata = {
        "schema_version": 1,
        "artifact_type": "ema_model",
        "kind": kind,
        "backend": "jax",
        "model_id": folder.name,
        "model_config": fields,
        "source": dict(source),
    }
    replace_text(folder / METADATA, json.dumps(metadata, indent=2) + "\n")


def generator_config(fields: Mapping[str, Any]) -> GeneratorConfig:
    """Our configuration from their `model_config`.

    Raises:
        ValueError: a field is missing, unknown, or asks for a network that ours is not.
    """
    _require_known(fields, {*GENERATOR_FIELDS, *GENERATOR_OPTIONS, *GENERATOR_TWINS, *NO_WEIGHTS}, GENERATOR_FIELDS)
    for name, twin in GENERATOR_TWINS.items():
        if fields.get(name, fields[twin]) != fields[twin]:
            raise ValueError(f"{name} must equal {twin} = {fields[twin]}, got {fields[name]}")
    known = GENERATOR_FIELDS | {name: ours for name, ours in GENERATOR_OPTIONS.items() if name in fields}
    ours = {our_name: fields[name] for name, our_name in known.items()}
    if not fields["noise_classes"]:  # their way to switch the style noise off
        ours |= {"style_tokens": 0, "style_codes": 1}
    return typed(ours, GeneratorConfig)


def mae_config(fields: Mapping[str, Any], num_classes: int) -> MaeConfig:
    """Our configuration from their `model_config`, which does not always say how many classes the head has.

    Raises:
        ValueError: a field is missing or unknown, or contradicts the weights.
    """
    _require_known(fields, {*MAE_FIELDS, *NO_WEIGHTS, "num_classes"}, MAE_FIELDS)
    if fields.get("num_classes", num_classes) != num_classes:
        raise ValueError(f"num_classes must be {num_classes}, as the head fc has, got {fields['num_classes']}")
    ours = {our_name: fields[name] for name, our_name in MAE_FIELDS.items()}
    return typed(ours | {"num_classes": num_classes}, MaeConfig)


def _parameters(tree: dict[str, Any]) -> dict[str, Any]:
    for key in ("ema_params", "params"):
        inner = tree.get(key)
        if isinstance(inner, dict):
            return _parameters(inner)
    return tree


def _require_known(fields: Mapping[str, Any], known: set[str], needed: Mapping[str, str]) -> None:
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"unknown fields {listed(unknown)}: this is another network")
    if missing := [name for name in needed if name not in fields]:
        raise ValueError(f"fields {listed(missing)} are missing")


def _their_generator_config(cfg: GeneratorConfig) -> dict[str, Any]:
    if cfg.output_range is not None:
        raise WeightsError(f"the authors' generator has no output_range, this one has {cfg.output_range}")
    fields = {name: getattr(cfg, ours) for name, ours in (GENERATOR_FIELDS | GENERATOR_OPTIONS).items()}
    if not cfg.style_tokens:
        fields |= {"noise_coords": 1, "noise_classes": 0}
    return fields | {name: fields[twin] for name, twin in GENERATOR_TWINS.items()}


def _their_mae_config(network: MaskedAutoencoder) -> dict[str, Any]:
    cfg = network.cfg
    if network.decoder is None:
        raise WeightsError("the authors' format holds whole auto-encoders, this folder has the encoder only")
    if cfg.max_groups != MAX_GROUPS:
        raise WeightsError(f"the authors' norms have at most {MAX_GROUPS} groups, these {cfg.max_groups}")
    fields = {name: getattr(cfg, ours) for name, ours in MAE_FIELDS.items()}
    return fields | {"layers": list(cfg.blocks), "num_classes": cfg.num_classes}
