"""Experts that solve the simulators' own success checks; each module is imported when its task is asked for."""

from importlib import import_module

from domains.robotics.experts.expert import Expert
from drifting.training.errors import ConfigError

EXPERTS = {
    "lift": ("lift", "LiftExpert"),
    "can": ("can", "CanExpert"),
    "square": ("square", "SquareExpert"),
    "tool_hang": ("tool_hang", "ToolHangExpert"),
    "block_push": ("block_push", "BlockPushExpert"),
    "push_t": ("push_t", "PushTExpert"),
}

EXPERT_REVISIONS = {"square": 2, "tool_hang": 2, "block_push": 1}
"""Raise an expert's, 0 at first, when it acts otherwise: what it showed before is not used again."""


def expert_name(task: str) -> str:
    """Whose expert shows the task: an expert does not look, that of can_image is that of can."""
    return task.removesuffix("_image")


def has_expert(task: str) -> bool:
    """Whether demos.source=scripted can show the task of this name."""
    return expert_name(task) in EXPERTS


def expert_for(task: str) -> type[Expert]:
    """The expert's class for the task of this name. ConfigError, naming the tasks that have one, if there is none."""
    if not has_expert(task):
        raise ConfigError(
            f"there is no scripted expert for task={task}, only for {', '.join(EXPERTS)}: demos.source=human is "
            "needed, with demos.path=FILE (HDF5 of robomimic's schema) where none can be downloaded"
        )
    module, name = EXPERTS[expert_name(task)]
    expert: type[Expert] = getattr(import_module(f"{__name__}.{module}"), name)
    return expert
