"""The tasks of configs/task/ as the tests of environments use them."""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from domains.robotics.task import TaskConfig
from drifting.training.config import typed

FOLDER = Path(__file__).parents[2] / "configs" / "task"


def task_of(name: str, **changes) -> TaskConfig:
    """configs/task/<name>.yaml, with some facts changed."""
    task = typed(OmegaConf.load(FOLDER / f"{name}.yaml"), TaskConfig)
    return replace(task, **changes)
