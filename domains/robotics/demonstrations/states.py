"""Observations, and absolute actions, of demonstrations that hold simulator states: the states are played back.

robosuite's recorder and robomimic's demo_v15.hdf5 keep states and actions alone, so that observations of any camera
can be made from them. What robosuite shows after a step is one substep (2 ms) older than its state; what is made here,
and in robomimic's own low-dimensional files, is of the state itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from domains.robotics.demonstrations.episode import DemonstrationError, Episode
from domains.robotics.demonstrations.schema import DemonstrationFile, DemonstrationWriter
from domains.robotics.environments.env_args import env_args_of
from domains.robotics.environments.robosuite_tasks import RobosuiteEnvironment
from domains.robotics.task import TaskConfig


def observe_states(
    task: TaskConfig,
    path: Path,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    models: bool = True,
    progress: bool = True,
) -> list[int]:
    """Write the episodes of `path` to `out` with the task's observations at every stored state; returns their steps.

    Actions and states are copied; rewards are 1 from the first successful state on. With `task.absolute_actions` the
    displacements of the source become poses. Where `models` is set, an episode's own MuJoCo model is used if the file
    has one: it holds sizes of objects, which states do not.

    Args:
        task: of robosuite; its observations and images are written.
        path: HDF5 with data/demo_<i>/{states, actions}.
        out: the new file.
        names: which episodes; None for all.
        models: False for models of an older robosuite, which the present one cannot build.
        progress: show a bar on stderr.

    Raises:
        DemonstrationError: an episode without states, or states of another simulator.
        ConfigError: robosuite is not installed or does not fit.
    """
    environment = RobosuiteEnvironment(replace(task, absolute_actions=False))
    env_args = env_args_of(task, version=environment.env_args["env_version"])
    with closing(environment), DemonstrationFile(path) as file, DemonstrationWriter(out, env_args) as writer:
        for name in tqdm(names or file.names, desc="playing back", unit="episode", disable=not progress):
            episode = file.episode(name, keys=())
            writer.write(_observed(environment, episode, absolute=task.absolute_actions, models=models))
    return writer.steps


def _observed(environment: RobosuiteEnvironment, episode: Episode, *, absolute: bool, models: bool) -> Episode:
    seen, actions, rewards = [], [], []
    for action, (observation, success) in zip(
        episode.actions, played_states(environment, episode, models=models), strict=True
    ):
        seen.append(observation)
        actions.append(environment.absolute_action(action) if absolute else action)
        rewards.append(float(success))
    # The state after the last action is not stored: its success is taken to be that of the last state.
    following = [*rewards[1:], rewards[-1]]
    return replace(
        episode,
        observations={key: np.stack([step[key] for step in seen]) for key in seen[0]},
        next_observations=None,
        actions=np.array(actions),
        executed=None,
        rewards=np.array(following),
        dones=np.array(following, dtype=np.int64),
    )


def played_states(
    environment: RobosuiteEnvironment, episode: Episode, *, models: bool = True
) -> Iterator[tuple[dict[str, NDArray[Any]], bool]]:
    """What is seen in each stored state of the episode, and whether the task's own check calls it a success.

    Raises:
        DemonstrationError: no states, those of another simulator, or a model that robosuite cannot build.
    """
    if episode.states is None:
        raise DemonstrationError(f"{episode.where}: no states to play back")
    model = episode.attributes.get("model_file") if models else None
    simulator: Any = environment.simulator
    try:
        for step, state in enumerate(episode.states):
            options: dict[str, Any] = {"state": state}
            if step == 0 and model is not None:
                options["model"] = model
            observation, info = environment.reset(seed=0, options=options)
            simulator.hard_reset = False  # the model is built once an episode, not for every state
            yield observation, bool(info["success"])
    except ValueError as error:  # MuJoCo's for a model, ours for a state
        hint = "" if model is None else ". A model of an older robosuite is left away by models=false"
        raise DemonstrationError(f"{episode.where}: cannot be played back: {error}{hint}") from error
    finally:
        simulator.hard_reset = True
