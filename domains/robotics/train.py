"""Train a robot policy that acts in one network call, or the diffusion baseline on the same network and data.

    python -m domains.robotics.train task=tool_hang                the settings for this machine, with a GPU or without
    python -m domains.robotics.train experiment=push_t             those for a GPU, experiment=push_t_cpu those without
    python -m domains.robotics.train task=lift policy.kind=diffusion run.name=lift_diffusion
    torchrun --nproc-per-node=2 -m domains.robotics.train task=can parallel=ddp

The same command continues a stopped run. Everything it writes lies in runs/<run.name>: metrics.jsonl, checkpoints and,
at the end, policy/ for `load_policy`.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from domains.robotics.batches import StepBatch, StepBatches
from domains.robotics.chunk_policy import ChunkPolicy, StepLoss
from domains.robotics.config import CONFIGS, RoboticsConfig
from domains.robotics.default_experiment import with_experiment
from domains.robotics.held_out import held_out_figures
from domains.robotics.policy import DriftingPolicy
from domains.robotics.policy_kinds import build_policy
from domains.robotics.start_checks import FREE, check_start
from domains.robotics.training_data import TrainingData, find_neighbours, fit_normalizers, load_windows
from drifting.training.checkpoint import Checkpoint, load_average
from drifting.training.command_line import command
from drifting.training.draws import seed_of, stream
from drifting.training.ema import Ema
from drifting.training.launch import prepare
from drifting.training.launcher import read_placement
from drifting.training.nonfinite_report import naming_features
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest
from drifting.training.telemetry import Telemetry
from drifting.training.world import World


@command(RoboticsConfig, "robotics", configs=CONFIGS)
def main(config: RoboticsConfig) -> None:
    """Train, checkpoint, save the averaged policy, and play it."""
    # Everything that can refuse comes before the run directory: a start that fails leaves no trace.
    world = prepare(config.run, config.parallel)
    check_start(config, world)
    data = load_windows(config, world.device)
    seed_everything(config.run.seed)
    policy = build_policy(config).to(world.device)
    fit_normalizers(policy, data.train)
    batches = StepBatches(
        data.train,
        size=config.batch.size,
        own=world.own(config.batch.size, "batch.size"),
        seed=config.run.seed,
        neighbours=find_neighbours(config, policy, data.train),
        actions=policy.actions,
    )
    ema = Ema(policy, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(policy, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(policy, config.optim)
    state = TrainState()

    run_dir = open_run(config.run, config, free=FREE)
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, policy=policy, ema=ema, optimizer=optimizer, state=state
    )
    checkpoint.load_latest()

    steps = config.run.steps
    introduce(config, policy, data, world)
    telemetry, show = Telemetry(config.log, world), ["drift_rms", "held_out/es"]
    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=show, config=config)
    weight = world.weight(config.batch.size)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            logged = every(config.log.every, state.step + 1, last=steps)
            with telemetry.waiting_for("windows of demonstrations"):
                batch, draws = batches.draw(state.step), own_draws(policy, config, world, state.step)
            with telemetry.region("forward"):
                result: StepLoss = model(
                    batch.observations, batch.actions, draws, batch.neighbours, with_figures=logged
                )
            loss, progress = result.loss * weight, {"step": state.step, "total_steps": steps}
            with telemetry.region("backward"), naming_what_drifts(policy, batch, draws, config):
                grad_norm = optimizer_step(loss, policy, optimizer, config.optim, **progress)
            ema.update(policy)
            state.step += 1
            telemetry.step(config.batch.size * draws["noise"].shape[1])  # chunks
            figures: dict[str, Tensor] = {}
            if logged:
                figures = world.mean({"loss": result.loss, **result.figures}, weight)
                if "spread_squared" in figures:
                    figures["spread"] = figures.pop("spread_squared").sqrt()
                figures |= {"grad_norm": grad_norm, "lr": torch.tensor(optimizer.param_groups[0]["lr"])}
            if data.held_out is not None and every(config.held_out.every, state.step, last=steps):
                seed = seed_of(config.run.seed, "held out", 0)
                with telemetry.region("held out"):
                    figures |= held_out_figures(ema.model(), data.held_out, config.held_out, seed=seed)
            if figures:
                telemetry.write(state.step, figures)
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    world.finish()
    if state.step < steps:
        stop.announce(run_dir, step=state.step, total=steps)
    elif world.is_main:
        averaged, _ = load_average(run_dir, build_policy(config), config.ema)
        averaged.save_pretrained(run_dir / "policy", demonstrations=config.demos.source)
        print(f"policy: {run_dir / 'policy'}")
        play(config, run_dir)


def own_draws(policy: ChunkPolicy, config: RoboticsConfig, world: World, step: int) -> dict[str, Tensor]:
    """Of the random numbers that belong to the step, this rank's part."""
    whole = policy.draw(config.batch.size, stream(config.run.seed, "noise", step, device=world.device))
    return {name: values[world.own(config.batch.size)] for name, values in whole.items()}


def naming_what_drifts(
    policy: ChunkPolicy, batch: StepBatch, draws: Mapping[str, Tensor], config: RoboticsConfig
) -> AbstractContextManager[None]:
    """A step that is not finite says whether the policy's actions or the demonstrations' are, and on which rank."""
    if not isinstance(policy, DriftingPolicy):
        return nullcontext()
    drifting = partial(policy.drifting, batch.observations, batch.actions, draws, batch.neighbours)
    return naming_features(lambda: [{"actions": policy.objective.terms(*drifting())}], config.drift.temperatures)


def play(config: RoboticsConfig, run_dir: Path) -> None:
    """Evaluate the last checkpoints in the simulator, as `python -m domains.robotics.evaluate` does."""
    if config.eval.episodes == 0:
        if config.task.simulator != "none":
            print(f"not evaluated, eval.episodes=0: python -m domains.robotics.evaluate run={run_dir}")
        return
    from domains.robotics.evaluate import EvaluateConfig, evaluate  # the simulators are needed only now

    settings = config.eval
    evaluate(
        EvaluateConfig(
            run=str(run_dir),
            episodes=settings.episodes,
            checkpoints=settings.checkpoints,
            workers=settings.workers,
            videos=settings.videos,
            device=config.run.device,
            threads=config.run.threads,
        )
    )


def introduce(config: RoboticsConfig, policy: ChunkPolicy, data: TrainingData, world: World) -> None:
    """Say what is trained on what, and what to watch."""
    million = sum(parameter.numel() for parameter in policy.parameters()) / 1e6
    world.say(
        f"{config.task.name}: a {config.policy.kind} policy, {config.policy.net} of {million:.2f} M parameters, "
        f"on {len(data.train)} windows of {len(data.train.episodes)} {config.demos.source} demonstrations"
    )
    if config.policy.kind == "drifting":
        world.say("watch held_out/es (lower is better): the loss is nearly constant by construction")


if __name__ == "__main__":
    arguments = with_experiment(sys.argv[1:])
    if len(arguments) > len(sys.argv[1:]) and read_placement(os.environ).rank == 0:
        print(f"settings for {'a GPU' if torch.cuda.is_available() else 'a CPU'}: {arguments[-1]}")
    sys.argv[1:] = arguments
    main()
