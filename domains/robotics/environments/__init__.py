"""Every simulator behind one interface: a gymnasium environment of observations by key.

    environment = make_environment(task)
    observation, info = environment.reset(seed=100_000)

Low-dimensional observations are float32 [d], images uint8 [H, W, 3] and upright. `step` returns the reward described in
each module, `terminated` when the simulator's own success check holds, `truncated` after `task.max_steps`, and
info = {"success": bool, "stages": int}. A seed determines the episode in any process; `get_state()` returns the
simulator's state, float64 [S], and `reset(options={"state": state})` restores it.
"""

from typing import TYPE_CHECKING, Any

from domains.robotics.environments.requirements import simulator_package
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

    Environment = gymnasium.Env[dict[str, Any], Any]
else:
    Environment = Any  # gymnasium belongs to an extra, and this package is imported without it


def make_environment(task: TaskConfig, *, render_size: int | None = None) -> Environment:
    """The simulator of `task`; with `render_size`, `render()` returns pictures uint8 [render_size, render_size, 3].

    Only the task's own simulator is imported. Raises ConfigError, with the fix, where its packages are missing or do
    not fit one another, and where the task names an observation that the simulator does not have.
    """
    if task.simulator == "none":
        raise ConfigError(
            f"task {task.name} has no simulator (task.simulator=none): the robot plays its policies itself"
        )
    simulator_package("gymnasium")
    if task.simulator == "robosuite":
        from domains.robotics.environments.robosuite_tasks import RobosuiteEnvironment

        return RobosuiteEnvironment(task, render_size=render_size)
    if task.simulator == "push_t":
        from domains.robotics.environments.push_t import PushT

        return PushT(task, render_size=render_size)
    if task.simulator == "block_push":
        from domains.robotics.environments.block_push import BlockPush

        return BlockPush(task, render_size=render_size)
    from domains.robotics.environments.kitchen import Kitchen

    return Kitchen(task, render_size=render_size)
