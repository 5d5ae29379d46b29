"""Our networks carrying the parameters of a golden file, and its images in our layout."""

import json
from pathlib import Path

import numpy as np
import torch
from flax_parameters import stored_parameters
from torch import Tensor

from domains.imagenet.flax_artefact import generator_config, mae_config
from domains.imagenet.flax_names import generator_names, mae_names
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder

Arrays = dict[str, np.ndarray]


def load_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def channels_first(images: np.ndarray) -> Tensor:
    """[K, H, W, C] -> [K, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def generator_from(arrays: Arrays) -> DiTGenerator:
    generator = DiTGenerator(generator_config(json.loads(str(arrays["config"]))))
    names = generator_names(generator.cfg)
    generator.load_state_dict(names.to_ours(stored_parameters(arrays), "golden"))
    return generator


def style_of(arrays: Arrays, name: str, generator: DiTGenerator) -> Tensor | None:
    return torch.from_numpy(arrays[name]).long() if generator.cfg.style_tokens else None


def mae_config_from(arrays: Arrays) -> MaeConfig:
    theirs = json.loads(str(arrays["config"]))
    return mae_config(theirs, num_classes=theirs["num_classes"])


def mae_from(arrays: Arrays) -> MaskedAutoencoder:
    mae = MaskedAutoencoder(mae_config_from(arrays))
    mae.load_state_dict(mae_names(len(mae.cfg.blocks)).to_ours(stored_parameters(arrays), "golden"))
    return mae
