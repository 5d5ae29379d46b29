"""Make demonstrations: by the scripted expert, or from the simulator states that others stored.

    python -m domains.robotics.collect task=lift demos.episodes=50          into the cache, where training finds them
    python -m domains.robotics.collect task=lift out=lift.hdf5 demos.workers=2    into a file, in two processes
    python -m domains.robotics.collect task=lift states=demo.hdf5 out=lift.hdf5

The last one plays back stored states (robomimic's demo_v15.hdf5, robosuite's own recordings) and writes what the task
observes in them, images included; with task.absolute_actions=true also the poses that the stored displacements mean.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.scripted import (
    collect_as_configured,
    demonstrations_path,
    scripted_demonstrations,
    summary,
)
from domains.robotics.task import TaskConfig
from drifting.training.command_line import command
from drifting.training.config import require


@dataclass
class RobotCollectConfig:
    """What to make. `out`: a new file, empty for the cache; `models`: build the MuJoCo models that `states` holds."""

    task: TaskConfig
    demos: DemosConfig = field(default_factory=DemosConfig)
    out: str = ""
    states: str = ""
    models: bool = True

    def __post_init__(self) -> None:
        require(
            self.demos.source == "scripted",
            "demos.source",
            "scripted (states=FILE fills in others')",
            self.demos.source,
        )
        named = self.states == "" or self.out != ""
        require(named, "out", "a new file, where states is given", self.out)
        simulated = self.states == "" or self.task.simulator == "robosuite"
        require(simulated, "task.simulator", "robosuite, where states is given", self.task.simulator)


@command(RobotCollectConfig, "robotics_collect", configs=Path(__file__).parents[2] / "configs")
def main(config: RobotCollectConfig) -> None:
    """Make the file and say what is in it."""
    task, demos, out = config.task, config.demos, Path(config.out).expanduser()
    if config.out and out.exists():
        raise DemonstrationError(f"out={config.out} exists; name a new file")
    began = time.monotonic()
    if config.states:
        from domains.robotics.demonstrations.states import observe_states

        steps = observe_states(task, Path(config.states).expanduser(), out, models=config.models)
        print(f"{len(steps)} episodes, {sum(steps)} steps: {out}")
        return
    if config.out:
        collect_as_configured(task, demos, out)
    else:
        out = demonstrations_path(task, demos)
        if out.exists():
            print("made before, and used again:")
        scripted_demonstrations(task, demos)
    print(f"{summary(out)}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
