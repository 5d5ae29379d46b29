"""The experiment that a command line means when it names a task alone: the task's own, for this machine."""

from collections.abc import Sequence

import torch

from domains.robotics.config import CONFIGS

DEFAULT_TASK = "lift"  # as in configs/robotics.yaml


def with_experiment(arguments: Sequence[str], *, cuda: bool | None = None) -> list[str]:
    """The arguments, and `experiment=<task>` or, without a CUDA device, `experiment=<task>_cpu` if they name none.

    Unchanged where there is no such file: a new task trains with the defaults of domains/robotics/config.py.
    `cuda` says whether there is a device; None looks.
    """
    given = dict(argument.lstrip("+").partition("=")[::2] for argument in arguments)
    if "experiment" in given:
        return list(arguments)
    if cuda is None:
        cuda = torch.cuda.is_available() and given.get("run.device") != "cpu"
    experiment = given.get("task", DEFAULT_TASK) + ("" if cuda else "_cpu")
    exists = (CONFIGS / "experiment" / f"{experiment}.yaml").is_file()
    return [*arguments, f"experiment={experiment}"] if exists else list(arguments)
