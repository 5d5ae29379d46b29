"""Our networks carrying the parameters of a golden file, and its images in our layout."""

import json
from pathlib import Path

import numpy as np
import torch
from flax_parameters import GENERATOR_RULES, MAE_RULES, stack_style_tables, stored_parameters, to_torch
from torch import Tensor

from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder

Arrays = dict[str, np.ndarray]


def load_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def channels_first(images: np.ndarray) -> Tensor:
    """[K, H, W, C] -> [K, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def generator_from(arrays: Arrays) -> DiTGenerator:
    theirs = json.loads(str(arrays["config"]))
    cfg = GeneratorConfig(
        channels=theirs["in_channels"],
        size=theirs["input_size"],
        patch=theirs["patch_size"],
        hidden=theirs["hidden_size"],
        depth=theirs["depth"],
        heads=theirs["num_heads"],
        mlp_ratio=theirs["mlp_ratio"],
        num_classes=theirs["num_classes"],
        context_tokens=theirs["n_cls_tokens"],
        style_tokens=theirs["noise_coords"] if theirs["noise_classes"] else 0,
        style_codes=theirs["noise_classes"] or 1,
        rms_norm=theirs["use_rmsnorm"],
        swiglu=theirs["use_swiglu"],
        qk_norm=theirs["use_qknorm"],
        rotary=theirs["use_rope"],
    )
    generator = DiTGenerator(cfg)
    generator.load_state_dict(to_torch(stack_style_tables(stored_parameters(arrays)), GENERATOR_RULES))
    return generator


def style_of(arrays: Arrays, name: str, generator: DiTGenerator) -> Tensor | None:
    return torch.from_numpy(arrays[name]).long() if generator.cfg.style_tokens else None


def mae_config_from(arrays: Arrays) -> MaeConfig:
    theirs = json.loads(str(arrays["config"]))
    return MaeConfig(
        channels=theirs["in_channels"],
        base_channels=theirs["base_channels"],
        blocks=theirs["layers"],
        space_to_depth=theirs["input_patch_size"],
        mask_patch=theirs["patch_size"],
        num_classes=theirs["num_classes"],
    )


def mae_from(arrays: Arrays) -> MaskedAutoencoder:
    mae = MaskedAutoencoder(mae_config_from(arrays))
    mae.load_state_dict(to_torch(stored_parameters(arrays), MAE_RULES))
    return mae
