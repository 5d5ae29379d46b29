"""Pre-train the masked auto-encoder whose features a generator drifts in (paper A.3).

python -m domains.imagenet.pretrain_mae                        on the training digits, into runs/mae_digits
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS
from domains.imagenet.digits import digits_splits
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder, random_patch_mask
from domains.imagenet.real_samples import ShuffledEpochs
from drifting.training.checkpoint import Checkpoint, load_average
from drifting.training.command_line import command
from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    require,
)
from drifting.training.draws import stream
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError, TrainingError
from drifting.training.launch import prepare
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import load_config, open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest
from drifting.training.telemetry import Telemetry


@dataclass
class MaeTrainingConfig:
    """Everything that `python -m domains.imagenet.pretrain_mae` needs.

    For the last `classification_steps` the loss is (1 - w) reconstruction + w cross-entropy; w rises linearly to
    `classification_weight` over the first third of them (paper A.3).
    """

    run: RunConfig
    mae: MaeConfig = field(default_factory=MaeConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=4e-3, warmup_steps=4000))
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(decays=[0.9995]))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch: int = 8192
    classification_steps: int = 0
    classification_weight: float = 0.1

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        within = 0 <= self.classification_steps <= self.run.steps
        require(within, "classification_steps", f"in 0..run.steps={self.run.steps}", self.classification_steps)
        headed = self.classification_steps == 0 or self.mae.num_classes > 0
        require(headed, "mae.num_classes", "the number of classes, as classification_steps > 0", self.mae.num_classes)
        require(0 <= self.classification_weight <= 1, "classification_weight", "in [0, 1]", self.classification_weight)

    def weight_at(self, step: int) -> float:
        """Classification weight w of update `step`."""
        done = step - (self.run.steps - self.classification_steps)
        rise = max(1, self.classification_steps // 3)
        return 0.0 if done < 0 else self.classification_weight * min(1.0, done / rise)


@command(MaeTrainingConfig, "mae", configs=CONFIGS)
def main(config: MaeTrainingConfig) -> None:
    """Train, checkpoint, and report held-out reconstruction."""
    world = prepare(config.run, config.parallel)
    refuse_sharing(config.parallel)
    own, weight = world.own(config.batch, "batch"), world.weight(config.batch)
    run_dir = open_run(config.run, config)
    seed_everything(config.run.seed)
    splits = digits_splits()
    mae = MaskedAutoencoder(config.mae).to(world.device)
    ema = Ema(mae, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(mae, world, config.parallel, copies=ema.models)
    telemetry = Telemetry(config.log, world)
    optimizer = build_optimizer(mae, config.optim)
    epochs = ShuffledEpochs(len(splits.train), config.run.seed)
    state = TrainState()
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, mae=mae, ema=ema, optimizer=optimizer, epochs=epochs, state=state
    )
    checkpoint.load_latest()

    steps = config.run.steps
    show = ["reconstruction", "accuracy"]
    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=show, config=config)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            with telemetry.waiting_for("training images"):
                batch = splits.train.subset(epochs.take(config.batch)[own])
                images = batch.images.to(world.device)
            with telemetry.region("forward"):
                terms = model(
                    images,
                    batch.labels.to(world.device) if config.mae.num_classes else None,
                    classification_weight=config.weight_at(state.step),
                    mask=draw_mask(config, state.step, images)[own],
                )
            loss = terms.loss.mean() * weight
            with telemetry.region("backward"):
                grad_norm = optimizer_step(loss, mae, optimizer, config.optim, step=state.step, total_steps=steps)
            ema.update(mae)
            state.step += 1
            telemetry.step(config.batch)
            if every(config.log.every, state.step, last=steps):
                figures = {"reconstruction": terms.reconstruction.mean()}
                if terms.correct is not None:
                    figures["accuracy"] = terms.correct.float().mean()
                telemetry.write(state.step, world.mean(figures, weight) | {"grad_norm": grad_norm})
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    if state.step < steps:
        world.finish()
        stop.announce(run_dir, step=state.step, total=steps)
        return

    error, baseline = reconstruction_error(ema.model(), splits.validation.images.to(world.device))
    world.say(f"held-out hidden-pixel error {error:.4f}, of predicting the mean image {baseline:.4f}; {run_dir}")
    world.finish()


def refuse_sharing(parallel: ParallelConfig) -> None:
    """Raise ConfigError for what belongs to drifting problems: an auto-encoder's batch is cut by ranks alone."""
    for key in ("shard_generated", "parts"):
        if getattr(parallel, key) != 1:
            raise ConfigError(f"parallel.{key} must be 1 in pre-training, got {getattr(parallel, key)}")


def draw_mask(config: MaeTrainingConfig, step: int, images: torch.Tensor) -> torch.Tensor:
    """Masks of the whole batch [batch, 1, h, w] of all ranks, the same on each."""
    sides = [side // config.mae.space_to_depth for side in images.shape[2:]]
    grid = torch.empty((), device=images.device).expand(config.batch, 1, *sides)
    source = stream(config.run.seed, "mask", step, device=images.device)
    return random_patch_mask(grid, config.mae.mask_patch, config.mae.mask_probability, source)


@torch.no_grad()
def reconstruction_error(mae: torch.nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Mean squared error on hidden positions, and that of the mean image in place of the reconstruction."""
    error = mae(images, generator=torch.Generator(images.device).manual_seed(0)).reconstruction.mean()
    return float(error), float((images - images.mean(0)).square().sum(1).mean())


def load_mae(run_dir: Path) -> MaskedAutoencoder:
    """The averaged auto-encoder of a finished pre-training run.

    Raises:
        TrainingError: no such run, an unfinished one, or a damaged checkpoint.
    """
    if not run_dir.exists():
        raise TrainingError(
            f"encoder.run={run_dir} does not exist. Pre-train it first: python -m domains.imagenet.pretrain_mae"
        )
    config = load_config(run_dir, MaeTrainingConfig)
    mae, step = load_average(run_dir, MaskedAutoencoder(config.mae), config.ema)
    if step < config.run.steps:
        raise TrainingError(
            f"encoder.run={run_dir} stopped at step {step} of {config.run.steps}. "
            "Finish it with the command that started it."
        )
    return mae


if __name__ == "__main__":
    main()
