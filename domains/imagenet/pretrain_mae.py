"""Pre-train the masked auto-encoder whose features a generator drifts in (paper A.3).

    python -m domains.imagenet.pretrain_mae                        on the training digits, into runs/mae_digits
    python -m domains.imagenet.pretrain_mae mae_experiment=imagenette64         on pixels
    python -m domains.imagenet.pretrain_mae mae_experiment=imagenette_latent    on the latents of a tokenizer

The same command continues a stopped run. At its end it reports the held-out reconstruction error and the linear
accuracy of the features, and writes them into metrics.json of the run directory.
"""

import json
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS, free_keys
from domains.imagenet.data.image_data import ImageData
from domains.imagenet.data.section import held_out_data, load_training_data, missing_data, missing_held_out
from domains.imagenet.data.whole_images import check_decodable
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder, random_patch_mask, to_grid
from domains.imagenet.mae_evaluation import ERROR, LINEAR, MEAN_ERROR, MaeEvaluation
from domains.imagenet.mae_latents import record_latents
from domains.imagenet.mae_training import MaeTrainingConfig
from domains.imagenet.missing import refuse_missing
from domains.imagenet.training_batches import TrainingBatches
from drifting.training.atomic_file import replace_text
from drifting.training.checkpoint import Checkpoint
from drifting.training.command_line import command
from drifting.training.draws import stream
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.launch import prepare
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest
from drifting.training.telemetry import Telemetry


@command(MaeTrainingConfig, "mae", configs=CONFIGS)
def main(config: MaeTrainingConfig) -> None:
    """Train, checkpoint, and report what held-out images say."""
    config.parallel.refuse_sharing("in pre-training: an auto-encoder has no drifting problems")
    world = prepare(config.run, config.parallel)
    own, weight = world.own(config.batch, "batch"), world.weight(config.batch)
    refuse_missing(missing_data(config.data) + missing_held_out(config.data))
    data, held_out = load_training_data(config.data), held_out_data(config.data)
    check_fits(config.mae, data)
    evaluation = None if held_out is None else MaeEvaluation(data, held_out, config.eval, world.device)
    check_decodable({"data.path": data, "data.validation": held_out}, Path(config.run.root))
    run_dir = open_run(config.run, config, free=free_keys(config.run))
    seed_everything(config.run.seed)
    mae = MaskedAutoencoder(config.mae).to(world.device)
    ema = Ema(mae, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(mae, world, config.parallel, copies=ema.models)
    telemetry = Telemetry(config.log, world)
    optimizer = build_optimizer(mae, config.optim)
    batches = TrainingBatches(data, config.batch, own, config.run.seed)
    state = TrainState()
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, mae=mae, ema=ema, optimizer=optimizer, batches=batches, state=state
    )
    checkpoint.load_latest()
    if world.is_main:
        record_latents(run_dir, data)  # after the checkpoint has refused other data than those it began with

    steps = config.run.steps
    show = ["reconstruction", "accuracy"]
    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=show, config=config)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            with telemetry.waiting_for("training images"):
                images, labels = batches.take(state.step)
                images = images.to(world.device)
            with telemetry.region("forward"):
                terms = model(
                    images,
                    labels.to(world.device) if config.mae.num_classes else None,
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
                figures: dict[str, torch.Tensor] = {"reconstruction": terms.reconstruction.mean()}
                if terms.correct is not None:
                    figures["accuracy"] = terms.correct.float().mean()
                telemetry.write(state.step, world.mean(figures, weight) | {"grad_norm": grad_norm})
            if evaluation and config.eval.every and every(config.eval.every, state.step) and state.step < steps:
                telemetry.write(state.step, evaluation.figures(ema.model()))
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    if state.step < steps:
        world.finish()
        stop.announce(run_dir, step=state.step, total=steps)
        return

    if evaluation is None:
        world.say(f"no held-out figures, as data.validation names nothing; {run_dir}")
    else:
        figures_at_end = evaluation.figures(ema.model())
        world.say(f"{in_words(figures_at_end)}; {run_dir}")
        if world.is_main:
            replace_text(run_dir / "metrics.json", json.dumps({"step": steps, **figures_at_end}, indent=2) + "\n")
    world.finish()


def in_words(figures: dict[str, float]) -> str:
    """One line for the figures of `MaeEvaluation`."""
    text = f"held-out hidden-position error {figures[ERROR]:.4f}, of predicting the mean {figures[MEAN_ERROR]:.4f}"
    return text + (f"; linear accuracy {figures[LINEAR]:.3f}" if LINEAR in figures else "")


def check_fits(mae: MaeConfig, data: ImageData) -> None:
    """Refuse an auto-encoder of other samples or classes.

    Raises:
        ConfigError: naming the key.
    """
    try:
        grid = to_grid(torch.empty(1, *data.sample_shape, device="meta"), mae)
        random_patch_mask(grid, mae.mask_patch, mae.mask_probability)
    except ValueError as error:
        raise ConfigError(f"mae.channels, mae.space_to_depth, mae.blocks or mae.mask_patch: {error}") from error
    if mae.num_classes not in (0, len(data.classes)):
        raise ConfigError(
            f"mae.num_classes must be {len(data.classes)}, the classes of the data, or 0 for no head, "
            f"got {mae.num_classes}"
        )


def draw_mask(config: MaeTrainingConfig, step: int, images: torch.Tensor) -> torch.Tensor:
    """Masks of the whole batch [batch, 1, h, w] of all ranks, the same on each."""
    sides = [side // config.mae.space_to_depth for side in images.shape[2:]]
    grid = torch.empty((), device=images.device).expand(config.batch, 1, *sides)
    source = stream(config.run.seed, "mask", step, device=images.device)
    return random_patch_mask(grid, config.mae.mask_patch, config.mae.mask_probability, source)


if __name__ == "__main__":
    main()
