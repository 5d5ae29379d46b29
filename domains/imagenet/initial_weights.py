"""Weights that a training starts from: an earlier run's, with another field or encoder, or published ones."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from domains.imagenet.config import OneStepGenerator
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.missing import Missing
from domains.imagenet.missing_weights import missing_weights
from domains.imagenet.pretrained import NETWORK_FILES
from domains.imagenet.sampling import load_generator
from drifting.training.checkpoint_file import checkpoint_paths
from drifting.training.errors import ConfigError
from drifting.training.run_dir import RESOLVED

SETTING = "generator.init"


def start_from(init: str, generator: OneStepGenerator) -> None:
    """Give `generator` the averaged weights of a run, or those of a folder or Hub repository of `save_pretrained`.

    Raises:
        ConfigError: of another network.
        TrainingError: no such run or weights, or damaged ones.
    """
    found = load_generator(Path(init))[1] if _is_run(init) else DiTGenerator.from_pretrained(init, setting=SETTING)
    if type(found) is not type(generator) or _architecture(found) != _architecture(generator):
        raise ConfigError(
            f"{SETTING}={init} holds another network than this one: {type(found).__name__} of {found.cfg}, "
            f"not {type(generator).__name__} of {generator.cfg}. Give this run its `generator` settings"
        )
    generator.load_state_dict(found.state_dict())


def missing_init(init: str) -> list[Missing]:
    """The run's checkpoint, or the published weights, unless they are on this machine."""
    if init == "":
        return []
    if _is_run(init):
        command = "python -m domains.imagenet.train with the settings of its resolved.yaml"
        return [] if checkpoint_paths(Path(init)) else [Missing(SETTING, f"{init} has no checkpoint yet", command)]
    return missing_weights(SETTING, init, files=NETWORK_FILES)


def _architecture(generator: OneStepGenerator) -> dict[str, Any]:
    return asdict(generator.cfg) | {"checkpoint_blocks": None}  # how memory is saved changes no sample


def _is_run(init: str) -> bool:
    return (Path(init) / RESOLVED).exists()
