"""What can refuse a training before its demonstrations are made, which may take half an hour."""

import torch

from domains.robotics.config import RoboticsConfig
from domains.robotics.environments import make_environment
from domains.robotics.environments.requirements import simulator_package
from domains.robotics.environments.seat import Film
from domains.robotics.policy_kinds import build_policy
from drifting.training.errors import ConfigError
from drifting.training.ranks import on_first_rank
from drifting.training.run_dir import check_run
from drifting.training.world import World

FREE = "eval"
"""The section that may differ when a run is continued."""


def check_start(config: RoboticsConfig, world: World) -> None:
    """Refuse what this domain does not do, what is not installed and a run that is another's; makes nothing.

    A collective call.

    Raises:
        ConfigError: settings that do not fit one another or the ranks, or a missing package.
        RunDirError: see `open_run`.
    """
    _check_settings(config, world)
    check_run(config.run, config, free=FREE)
    with torch.device("meta"):  # sizes and packages of the policy, without its weights
        build_policy(config)
    if config.eval.episodes > 0:
        on_first_rank(lambda: _check_simulator(config), ConfigError)


def _check_settings(config: RoboticsConfig, world: World) -> None:
    if world.mesh is not None:
        raise ConfigError(
            f"parallel.mode must be single or ddp, got {config.parallel.mode}: a policy's weights fit on every rank"
        )
    config.parallel.refuse_sharing("for robot policies, whose samples are small")
    world.own(config.batch.size, "batch.size")
    if config.drift.neighbours and config.policy.kind == "diffusion":
        raise ConfigError("drift.neighbours must be 0 with policy.kind=diffusion: they belong to the drifting loss")
    if config.drift.neighbours and not config.task.observations:
        raise ConfigError(f"drift.neighbours must be 0 for {config.task.name}, which has images only")
    if config.demos.source == "scripted":
        config.demos.check_held_out(config.demos.episodes)


def _check_simulator(config: RoboticsConfig) -> None:
    """Make the simulator that plays the policy at the end, once: what it misses is said now."""
    try:
        if config.eval.videos:
            simulator_package("imageio_ffmpeg")
        make_environment(config.task, render_size=Film().size if config.eval.videos else None).close()
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The trained policy is played at the end, which needs it: eval.episodes=0 trains only"
        ) from error
