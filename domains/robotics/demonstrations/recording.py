"""One attempt of a scripted expert, as an episode."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from domains.robotics.demonstrations.episode import Episode
from domains.robotics.demonstrations.noise import executed_noise
from domains.robotics.demonstrations.schema import DemonstrationWriter
from domains.robotics.environments import make_environment
from domains.robotics.environments.env_args import env_args_of
from domains.robotics.experts import expert_for
from domains.robotics.task import TaskConfig

if TYPE_CHECKING:
    import gymnasium

    from domains.robotics.experts.expert import Expert


@dataclass
class Recorder:
    """Records attempts at `task` with executed noise; makes its simulator at the first, in whatever process that is."""

    task: TaskConfig
    noise: float
    noise_steps: float = 0.0
    _environment: "gymnasium.Env | None" = None
    _expert: "Expert | None" = None

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: a simulator stays in its process."""
        return {**vars(self), "_environment": None, "_expert": None}

    def record_into(self, folder: Path, seed: int) -> Path | None:
        """The file <folder>/<seed>.hdf5 of the attempt `seed`, or None if it fails; not repeated if it is there."""
        path, failure = folder / f"{seed}.hdf5", folder / f"{seed}.failed"
        if path.exists():
            return path
        if failure.exists():
            return None
        if self._environment is None or self._expert is None:
            expert = expert_for(self.task.name)
            # Experts command displacements; absolute actions are the poses or places that these lead to.
            self._environment = make_environment(replace(self.task, absolute_actions=False))
            self._expert = expert(self._environment)
        episode = record_episode(
            self._environment,
            self._expert,
            seed=seed,
            noise=self.noise,
            noise_steps=self.noise_steps,
            absolute=self.task.absolute_actions,
        )
        if episode is None:
            failure.touch()
            return None
        with DemonstrationWriter(path, self.env_args()) as writer:
            writer.write(episode)
        return path

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of the environment in which the recorded actions are executed."""
        simulated: dict[str, Any] = self._environment.unwrapped.env_args  # type: ignore[union-attr]
        return env_args_of(self.task, version=simulated["env_version"])


def record_episode(
    environment: "gymnasium.Env",
    expert: "Expert",
    *,
    seed: int,
    noise: float,
    noise_steps: float = 0.0,
    absolute: bool = False,
) -> Episode | None:
    """What the expert does in the episode `seed` until it succeeds; None if it does not in time.

    The label is what the expert wants, what is executed is that plus noise of standard deviation `noise` half ranges of
    the actions (see `executed_noise`), clipped to their range. `absolute`: labels are the poses that the displacements
    lead to.
    """
    space: Any = environment.action_space  # a box
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    simulator: Any = environment.unwrapped
    pose = simulator.absolute_action if absolute else np.copy
    observation, _ = environment.reset(seed=seed)
    expert.reset()
    model = {"model_file": simulator.get_model()} if hasattr(simulator, "get_model") else {}
    seen, states, labels, executed, rewards = [observation], [], [], [], []
    success = ended = False
    disturbances = executed_noise(seed, len(low), std=noise, steps=noise_steps)
    while not (success or ended):
        label = np.clip(np.asarray(expert.act(), np.float64), low, high)
        action = np.clip(label + (high - low) / 2 * next(disturbances), low, high)
        states.append(simulator.get_state())
        labels.append(pose(label))
        executed.append(pose(action))
        observation, reward, success, ended, _ = environment.step(action)
        seen.append(observation)
        rewards.append(float(reward))
    if not success:
        return None
    return Episode(
        observations=_stacked(seen[:-1]),
        next_observations=_stacked(seen[1:]),
        actions=np.array(labels),
        executed=np.array(executed),
        states=np.array(states),
        rewards=np.array(rewards),
        dones=np.eye(len(rewards), dtype=np.int64)[-1],
        attributes=model | {"seed": str(seed)},
        where=f"{environment.spec.id if environment.spec else type(simulator).__name__} seed_{seed}",
    )


def _stacked(steps: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([step[key] for step in steps]) for key in steps[0]}
