"""Train a one-step, class-conditional image generator with the drifting loss.

    python -m domains.imagenet.train                               handwritten digits, drifting on pixels
    python -m domains.imagenet.train experiment=digits_features    the same in features of a masked auto-encoder
    python -m domains.imagenet.train run.name=mine optim.lr=5e-4   any key of domains/imagenet/config.py
    torchrun --nproc-per-node=2 -m domains.imagenet.train parallel=ddp      the same run on two processes

The same command continues a stopped run. Everything it writes lies in runs/<run.name>.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from domains.imagenet.check_measures import check_images, check_measures, decoded_shape, images_read
from domains.imagenet.config import CONFIGS, ImagenetConfig, free_keys
from domains.imagenet.data.image_data import ImageData
from domains.imagenet.data.latent_store import LatentStore
from domains.imagenet.data.section import load_training_data, missing_data
from domains.imagenet.data.whole_images import check_decodable
from domains.imagenet.encoders.section import build_encoder, missing_encoder
from domains.imagenet.evaluate import report
from domains.imagenet.initial_weights import missing_init, start_from
from domains.imagenet.mae_latents import refuse_other_latents
from domains.imagenet.measuring import missing_measures
from domains.imagenet.missing import Missing, refuse_missing
from domains.imagenet.pictures import save_curves
from domains.imagenet.problems import ProblemDraws, backward, terms_of_parts
from domains.imagenet.quick_evaluation import QuickEvaluation
from domains.imagenet.real_samples import RealSamples
from domains.imagenet.tokenizers import PixelTokenizer, Tokenizer, missing_tokenizer
from drifting import DriftTerms, FeatureDriftLoss
from drifting.training.checkpoint import Checkpoint
from drifting.training.command_line import command
from drifting.training.drift_figures import drift_rms_by_feature
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.fingerprint import Fingerprint
from drifting.training.launch import prepare
from drifting.training.metrics_log import read_metrics
from drifting.training.nonfinite_report import naming_features
from drifting.training.optimizer import apply_gradient, build_optimizer
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest
from drifting.training.telemetry import Telemetry
from drifting.training.world import World


@command(ImagenetConfig, "imagenet", configs=CONFIGS)
def main(config: ImagenetConfig) -> None:
    """Train, checkpoint, and report at the end."""
    # Everything that can refuse comes before the run directory: a start that fails leaves no trace.
    world = prepare(config.run, config.parallel)
    refuse_missing(what_is_missing(config))
    data = load_training_data(config.data)
    check_fits(config, data)
    tokenizer = None if config.tokenizer.kind == "none" else config.tokenizer.build().to(world.device)
    check_decoded(data, tokenizer)
    check_measures(config.eval, len(data.classes), ranks=world.size)
    images = images_read(config.eval, config.data)
    check_images(images, decoded_shape(data.sample_shape, tokenizer), data.classes)
    if unknown := refuse_other_latents(config.encoder, data):
        world.say(f"note: {unknown}")
    encoder = build_encoder(config.encoder, data.sample_shape, tokenizer).to(world.device)
    seed_everything(config.run.seed)
    real = RealSamples.of(config, data, world)
    generator = config.generator.build()
    if config.generator.init:
        start_from(config.generator.init, generator)
    generator.to(world.device)
    problems = ProblemDraws(config, real, generator, len(data.classes), world)
    telemetry = Telemetry(config.log, world, flops=partial(problems.flops, encoder))
    ema = Ema(generator, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(generator, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(generator, config.optim)
    drift_loss = FeatureDriftLoss(telemetry.wrap("encoder", encoder), config.drift.build(), config.drift.budget)
    drift_loss.loss.shard_generated = world.generated
    state = TrainState()

    check_decodable({**images, "data.path": data}, Path(config.run.root))
    run_dir = open_run(config.run, config, free=free_keys(config.run))
    checkpoint = Checkpoint(
        run_dir,
        keep=config.checkpoint.keep,
        generator=generator,
        ema=ema,
        optimizer=optimizer,
        real=real,
        encoder=Fingerprint(encoder),
        state=state,
    )
    checkpoint.load_latest()
    real.fill()
    evaluate = QuickEvaluation(config, run_dir, world, tokenizer) if config.eval.every else None

    steps = config.run.steps
    world.say(
        f"{len(data)} training samples of {len(data.classes)} classes, {steps - state.step} steps to go, into {run_dir}"
    )
    world.say("watch drift_rms and spread (generated / real, 1 is right): the loss is nearly constant by construction")
    show = ["drift_rms", "spread"]
    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=show, config=config)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            measured = evaluate is not None and (state.step + 1) % evaluate.section.every == 0
            logged = measured or every(config.log.every, state.step + 1, last=steps)
            with telemetry.waiting_for("training images"):
                real.push(config.queue.push_per_step)
                batch = problems.draw(state.step)
            optimizer.zero_grad()
            parts = config.parallel.parts
            loss, terms = backward(
                model,
                drift_loss,
                batch,
                telemetry,
                parts=parts,
                with_terms=logged,
                keep_references=config.drift.kept_references,
            )
            with naming_features(partial(terms_of_parts, model, drift_loss, batch, parts), config.drift.temperatures):
                grad_norm = apply_gradient(loss, generator, optimizer, config.optim, step=state.step, total_steps=steps)
            ema.update(generator)
            state.step += 1
            telemetry.step(problems.images_per_step)
            if logged:
                figures = convergence(terms, config.drift.temperatures, world, batch.weight)
                figures |= drift_rms_by_feature(terms, config.drift.temperatures)
                figures |= world.mean({"loss": loss}, batch.weight) | {"grad_norm": grad_norm}
                if measured:
                    with telemetry.region("evaluation"):
                        sheet = run_dir / "samples" / f"step_{state.step:08d}.png"
                        figures |= evaluate.figures(ema.model(), sheet)
                telemetry.write(state.step, figures)
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    world.meet()  # the last checkpoint is whole
    if state.step == steps and world.is_main:
        save_curves(run_dir / "curves.png", read_metrics(run_dir))
    if state.step == steps and config.eval.network == "inception":
        report(run_dir, config.eval, world=world)
    world.finish()
    if state.step < steps:
        stop.announce(run_dir, step=state.step, total=steps)
    elif world.is_main and config.eval.network == "judge":  # its figures are of one process
        report(run_dir, config.eval, world=World(world.device))


def what_is_missing(config: ImagenetConfig) -> list[Missing]:
    """Data, weights and earlier runs that training, or the report after it, would not find."""
    return [
        *missing_data(config.data),
        *missing_tokenizer(config.tokenizer),
        *missing_init(config.generator.init),
        *missing_encoder(config.encoder),
        *missing_measures(config.eval, config.data),
    ]


def check_fits(config: ImagenetConfig, data: ImageData) -> None:
    """Refuse a generator of another sample shape or number of classes, and more classes a step than there are."""
    shape = config.generator.shape
    key = f"generator.{config.generator.kind}"
    given = {"channels": shape.channels, "size": shape.size, "num_classes": shape.num_classes}
    channels, height, width = data.sample_shape
    if height != width:
        raise ConfigError(f"data.path must hold square samples, got {height} x {width}")
    classes = len(data.classes)
    expected = {"channels": channels, "size": height, "num_classes": classes}
    for name, value in expected.items():
        if given[name] != value:
            raise ConfigError(f"{key}.{name} must be {value} for these data ({config.data.kind}), got {given[name]}")
    if config.drift.classes_per_step > classes:
        raise ConfigError(
            f"drift.classes_per_step must be at most {classes}, the number of classes, "
            f"got {config.drift.classes_per_step}"
        )


def check_decoded(data: ImageData, tokenizer: Tokenizer | None) -> None:
    """Refuse latents without the tokenizer that made them, and pixels with one."""
    if isinstance(data, LatentStore):
        data.refuse_other(PixelTokenizer() if tokenizer is None else tokenizer)
    elif tokenizer is not None:
        raise ConfigError(f"tokenizer.kind must be none where the data are pixels, got {tokenizer.identity.kind}")


def convergence(
    terms: dict[str, DriftTerms], temperatures: list[float], world: World, weight: float
) -> dict[str, Tensor]:
    """Figures that tell convergence, means over features; the loss does not: normalisation keeps it nearly constant.

    Of the problems of all ranks; every rank must call it.
    """
    figures = [term.diagnostics for term in terms.values()]
    own = {
        "gen": torch.stack([figure.gen_spread for figure in figures]).square(),  # [K], mean squares over problems
        "pos": torch.stack([figure.pos_spread for figure in figures]).square(),
        "positive_mass": torch.stack([figure.positive_mass.mean() for figure in figures]).mean(),
        "floor_share": torch.stack([figure.floor_share.mean() for figure in figures]).mean(),
    }
    means = world.mean(own, weight)
    drift_rms = torch.stack([term.drift_rms for term in terms.values()]).mean(0)  # [T], over every rank already
    by_temperature = {f"drift_rms/{tau:g}": rms for tau, rms in zip(temperatures, drift_rms, strict=True)}
    real = means.pop("pos").sqrt()  # 0 of a single positive, or of a feature that is constant: no ratio
    spread = torch.where(real > 0, means.pop("gen").sqrt() / real, torch.nan)
    return by_temperature | {
        "drift_rms": drift_rms[max(range(len(temperatures)), key=temperatures.__getitem__)],  # at the largest
        "spread": spread.nanmean(),
        **means,
    }


if __name__ == "__main__":
    main()
