"""Generators of W-Flow (arXiv 2605.11755; hanjq17/W-Flow, weights jiaqihan99/W-Flow): the paper's transformer.

A training checkpoint `state_<step>.pt` holds step, model, ema_model, optimizer and ema_decay; the artefact
`params_ema/ema_params.pt` of a run the averaged state alone. Only averaged weights are read, and no pickled object is
built. The released sizes are B/2, L/2 and XL/2; their guidance scale is our alpha.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset
from domains.imagenet.hub import WeightsError
from domains.imagenet.parameter_names import BATCHED, ParameterNames, Rule, listed

PRESETS = ("B/2", "L/2", "XL/2")
AVERAGE = "ema_model"


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.linear.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def wflow_names(cfg: GeneratorConfig) -> ParameterNames:
    """The table of their released generators (RMS norms, SwiGLU, normalised queries and keys)."""
    block = "model.blocks.{}"
    return ParameterNames(
        [
            Rule("class_embed.weight", "conditioning.classes.weight"),
            *_linear("cfg_embedder.fc1", "conditioning.alpha_in"),
            *_linear("cfg_embedder.fc2", "conditioning.alpha_out"),
            Rule("cfg_norm.weight", "conditioning.alpha_norm.weight"),
            Rule("noise_embeds.{}.weight", "conditioning.style.weight", parts=cfg.style_tokens),
            *_linear("model.patch_embed", "patch_embed"),
            *_linear("model.c_token_proj", "context_linear"),
            Rule("model.cls_embed", "context_embed", BATCHED),
            Rule("model.pos_embed", "position", BATCHED),
            *_linear(f"{block}.adaLN_mod.1", "blocks.{}.modulation.linear"),
            *(Rule(f"{block}.norm{i}.weight", f"blocks.{{}}.norm{i}.weight") for i in (1, 2)),
            *_linear(f"{block}.attn.qkv", "blocks.{}.attention.qkv"),
            *_linear(f"{block}.attn.proj", "blocks.{}.attention.out"),
            *(Rule(f"{block}.attn.{n}_norm.weight", f"blocks.{{}}.attention.{n}_norm.weight") for n in "qk"),
            *_linear(f"{block}.mlp.w1", "blocks.{}.mlp.gate"),
            *_linear(f"{block}.mlp.w3", "blocks.{}.mlp.value"),
            *_linear(f"{block}.mlp.w2", "blocks.{}.mlp.out"),
            Rule("model.final_layer.norm_final.weight", "final.norm.weight"),
            *_linear("model.final_layer.adaLN_mod.1", "final.modulation.linear"),
            *_linear("model.final_layer.linear", "final.linear"),
        ]
    )


@dataclass(frozen=True)
class WFlowCheckpoint:
    """A generator of ours with W-Flow's averaged weights; `step` of their training, None where the file has none."""

    network: DiTGenerator
    step: int | None


def read_wflow(path: Path) -> WFlowCheckpoint:
    """Read a checkpoint of W-Flow.

    Raises:
        WeightsError: not a file of tensors and primitives, no averaged weights, or another network; names what differs.
    """
    content = _load(path)
    state = content.get(AVERAGE) if AVERAGE in content or "optimizer" in content else content
    tensors = isinstance(state, Mapping) and bool(state) and all(isinstance(v, Tensor) for v in state.values())
    if not isinstance(state, Mapping) or not tensors:
        raise WeightsError(
            f"{path} must hold averaged weights under {AVERAGE!r}, or be a state dict of tensors, "
            f"got the keys {listed([str(key) for key in content])}"
        )
    cfg = _preset_of(state, path)
    ours = wflow_names(cfg).to_ours({str(name): value for name, value in state.items()}, str(path))
    step = content.get("step")
    network = DiTGenerator.skeleton(cfg, "generator").fill(ours, path)
    return WFlowCheckpoint(network, step if isinstance(step, int) else None)


def _load(path: Path) -> dict[Any, Any]:
    try:
        # mmap: the optimiser's state, twice the size of the weights, is never read
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # unpickling fails in as many ways as there are pickles
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path} is damaged, or holds something else than tensors and primitives, and was not loaded: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold a dict of a PyTorch checkpoint, got a {type(content).__name__}")
    return content


def _preset_of(state: Mapping[Any, Any], path: Path) -> GeneratorConfig:
    positions = state.get("model.pos_embed")
    if positions is None or positions.ndim != 3:
        names = listed([str(name) for name in state])
        raise WeightsError(
            f"{path} is no generator of W-Flow: it has no model.pos_embed [1, tokens, width], but {names}"
        )
    width = positions.shape[-1]
    depth = len({name.split(".")[2] for name in map(str, state) if name.startswith("model.blocks.")})
    for preset in PRESETS:
        cfg = generator_preset(preset)
        if (cfg.hidden, cfg.depth) == (width, depth):
            return cfg
    known = ", ".join(f"{name} ({(c := generator_preset(name)).hidden} x {c.depth})" for name in PRESETS)
    raise WeightsError(f"{path} must be one of W-Flow's sizes, {known} (width x depth), got {width} x {depth}")
