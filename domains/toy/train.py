"""Draw Figures 3 and 4 of the paper: `python -m domains.toy.train [run.name=... run.seed=... key=value ...]`.

The same command continues a stopped run; after the last step it only draws the figures again.
"""

from pathlib import Path

import torch
from torch import Tensor

from domains.toy.config import DriftConfig, ToyConfig
from domains.toy.coverage import covered_regions, energy_distance, region_shares
from domains.toy.figures import TrainingPicture, save_particle_figure, save_training_figure
from domains.toy.film import Film, geometric_steps
from domains.toy.generator import PerTargetGenerator
from domains.toy.particles import STARTS, drift_particles
from domains.toy.results import Learnt, save_results, summary
from domains.toy.targets import TARGETS, Target
from drifting import DriftLoss, MeanShift
from drifting.training.checkpoint import Checkpoint
from drifting.training.command_line import command
from drifting.training.draws import seed_of
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.launch import prepare
from drifting.training.metrics_log import read_metrics
from drifting.training.nonfinite_report import naming_features
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest
from drifting.training.telemetry import Telemetry
from drifting.training.world import World

EVALUATED = 3000  # samples of each set behind the table's figures


@command(ToyConfig, "toy", configs=Path(__file__).parents[2] / "configs")
def main(config: ToyConfig) -> None:
    """Both figures, their numbers, and where everything lies."""
    world = prepare(config.run, config.parallel)
    run_dir = open_run(config.run, config)

    # Figure 4 first: its training is what may be interrupted. A checkpoint holds the random generators too, so that
    # what is drawn after the training is the same when a finished run only draws its figures again.
    trained = train(config, run_dir, world)
    if trained is None:
        world.finish()
        return
    generator, film = trained
    learnt = [evaluate(index, generator, config, run_dir, world.device) for index in range(len(TARGETS))]
    world.finish()
    if not world.is_main:
        return
    pictures = [picture(index, film, config, run_dir) for index in range(len(TARGETS))]

    # Figure 3: particles, no network.
    field = MeanShift(floor=config.particles.floor)
    tracks = [drift_particles(start, config.particles, field, config.run.seed) for start in STARTS]

    files = save_particle_figure(run_dir, tracks) + save_training_figure(run_dir, pictures)
    files.append(save_results(run_dir / "results.json", tracks, learnt))
    print(summary(tracks, learnt))
    print(*files, run_dir / "metrics.jsonl", run_dir / "checkpoints", sep="\n")


def train(config: ToyConfig, run_dir: Path, world: World) -> tuple[torch.nn.Module, Film] | None:
    """Train one network per target, B = 2 drifting problems; the averaged weights and the film, None if asked to stop.

    Ranks share the generated samples of both problems; each draws all noise and all data, which are small.
    """
    if world.problem_shares > 1:
        raise ConfigError(
            f"parallel.shard_generated must be {world.size}, the number of ranks: they share the generated samples, "
            f"since each problem trains a network of its own. Got {world.shard_generated}"
        )
    seed_everything(config.run.seed)
    generator = PerTargetGenerator(len(TARGETS), config.generator).to(world.device)
    drift_loss = build_loss(config.drift)
    drift_loss.shard_generated = world.generated
    own = world.own_samples(config.drift.generated, "drift.generated")
    ema = Ema(generator, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(generator, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(generator, config.optim)
    steps = config.run.steps
    telemetry = Telemetry(config.log, world)
    film = Film(draw_noise(config.film.points, config).to(world.device), geometric_steps(steps, config.film.frames))
    state = TrainState()
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, generator=generator, ema=ema, optimizer=optimizer, film=film, state=state
    )
    if checkpoint.load_latest() is None:
        film.record(0, ema.model())

    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=list(TARGETS), config=config)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            with telemetry.waiting_for("samples of the targets"):
                torch.manual_seed(seed_of(config.run.seed, "samples", state.step))  # the same on every rank
                real = draw_real(config.drift.positives).to(world.device)
                noise = draw_noise(config.drift.generated, config)[:, own].to(world.device)
            with telemetry.region("generator"):
                generated = model(noise)
            with telemetry.region("loss"):
                terms = drift_loss.terms(generated, real)
            # The sum: each network receives the gradient that it would receive alone.
            loss, progress = terms.loss.sum(), {"step": state.step, "total_steps": steps}
            with (
                telemetry.region("backward"),
                naming_features(lambda terms=terms: [{"plane": terms}], drift_loss.temperatures),
            ):
                grad_norm = optimizer_step(loss, generator, optimizer, config.optim, **progress)
            ema.update(generator)
            state.step += 1
            telemetry.step(len(TARGETS) * config.drift.generated)
            film.record(state.step, ema.model())
            if every(config.log.every, state.step, last=steps):
                drifts = world.mean(dict(zip(TARGETS, terms.loss, strict=True)))
                lr = optimizer.param_groups[0]["lr"]
                telemetry.write(state.step, {**drifts, "grad_norm": grad_norm, "lr": lr})
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    if state.step < steps:
        stop.announce(run_dir, step=state.step, total=steps)
        return None
    return ema.model(), film


def build_loss(config: DriftConfig) -> DriftLoss:
    """The notebook's loss, |V|^2 averaged over samples and coordinates.

    Without normalisation the two problems stay independent, and the value of the loss falls as they are learnt.
    """
    field = MeanShift(floor=config.floor)
    return DriftLoss((config.temperature,), field, normalize_features=False, normalize_drift=False)


def draw_noise(num: int, config: ToyConfig) -> Tensor:
    """Normal noise [B, num, Z]; on the CPU, so that every device draws the same."""
    return torch.randn(len(TARGETS), num, config.generator.noise_dim)


def draw_real(num: int) -> Tensor:
    """Samples of every target, [B, num, 2]."""
    return torch.stack([target.draw(num) for target in TARGETS.values()])


@torch.no_grad()
def evaluate(index: int, generator: torch.nn.Module, config: ToyConfig, run_dir: Path, device: torch.device) -> Learnt:
    """Compare generated samples of the target at `index` with its data."""
    name, target = list(TARGETS.items())[index]
    generated = generator(draw_noise(EVALUATED, config).to(device))[index].cpu()
    real, other = target.draw(EVALUATED), target.draw(EVALUATED)
    return Learnt(
        target=name,
        steps=config.run.steps,
        seconds=read_metrics(run_dir)[-1]["seconds"],
        distance=energy_distance(generated, real),
        distance_real=energy_distance(other, real),
        covered=covered_regions(target, generated),
        regions=target.num_regions,
        inside=region_shares(target, generated).sum().item(),
        inside_real=region_shares(target, real).sum().item(),
    )


def loss_between_real(target: Target, config: DriftConfig, repeats: int = 20) -> float:
    """Loss of data against data in the training's batch sizes: what remains when the generator is perfect."""
    gen = torch.stack([target.draw(config.generated) for _ in range(repeats)])
    pos = torch.stack([target.draw(config.positives) for _ in range(repeats)])
    return float(build_loss(config)(gen, pos))


def picture(index: int, film: Film, config: ToyConfig, run_dir: Path) -> TrainingPicture:
    """Gather what Fig. 4 shows of the target at `index`."""
    name, target = list(TARGETS.items())[index]
    lines = read_metrics(run_dir)
    return TrainingPicture(
        name=name,
        data=target.draw(config.film.points),
        frames=[frame[index] for frame in film.frames],
        steps=film.steps,
        loss_steps=[line["step"] for line in lines],
        losses=[line[name] for line in lines],
        loss_real=loss_between_real(target, config.drift),
    )


if __name__ == "__main__":
    main()
