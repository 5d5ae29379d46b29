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


def expert_for(task: str) -> type[Expert]:
    """The expert's class for the task of this name. ConfigError, naming the tasks that have one, if there is none."""
    if task not in EXPERTS:
        raise ConfigError(
            f"there is no scripted expert for task={task}, only for {', '.join(EXPERTS)}: demos.source=human is needed"
        )
    module, name = EXPERTS[task]
    expert: type[Expert] = getattr(import_module(f"{__name__}.{module}"), name)
    return expert
