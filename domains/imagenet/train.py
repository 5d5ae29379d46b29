"""Train a one-step, class-conditional image generator with the drifting loss.

    python -m domains.imagenet.train                               handwritten digits, drifting on pixels
    python -m domains.imagenet.train experiment=digits_features    the same in features of a masked auto-encoder
    python -m domains.imagenet.train run.name=mine optim.lr=5e-4   any key of domains/imagenet/config.py

The same command continues a stopped run. Everything it writes lies in runs/<run.name>.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from domains.imagenet.config import CONFIGS, EncoderSection, ImagenetConfig
from domains.imagenet.digits import IMAGE_SHAPE, NUM_CLASSES, DigitsSplits, digits_splits
from domains.imagenet.encoders import MaeFeatures, PixelFeatures
from domains.imagenet.evaluate import check_enough_samples, report
from domains.imagenet.pictures import save_curves
from domains.imagenet.pretrain_mae import load_mae
from domains.imagenet.real_samples import RealSamples
from drifting import DriftTerms, FeatureDriftLoss, guidance_weight
from drifting.features import total_loss
from drifting.training.checkpoint import Checkpoint
from drifting.training.command_line import command
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.fingerprint import Fingerprint
from drifting.training.launch import prepare
from drifting.training.metrics_log import MetricsLog, read_metrics
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every


@command(ImagenetConfig, "imagenet", configs=CONFIGS)
def main(config: ImagenetConfig) -> None:
    """Train, checkpoint, and report at the end."""
    # Everything that can refuse comes before the run directory: a start that fails leaves no trace.
    device = prepare(config.run)
    splits = digits_splits()
    check_fits(config, splits)
    encoder = build_encoder(config.encoder).to(device)
    seed_everything(config.run.seed)
    drift = config.drift
    real = RealSamples(
        splits.train,
        num_classes=NUM_CLASSES,
        per_class=config.queue.per_class,
        unconditional=config.queue.unconditional,
        num_positive=drift.num_positive,
        num_unconditional=drift.num_unconditional,
        seed=config.run.seed,
    )
    generator = config.generator.build().to(device)
    ema = Ema(generator, config.ema.decays, warmup=config.ema.warmup)
    optimizer = build_optimizer(generator, config.optim)
    drift_loss = FeatureDriftLoss(encoder, drift.build())
    guidance = config.guidance.build()
    state = TrainState()

    run_dir = open_run(config.run, config, free="eval")
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

    steps = config.run.steps
    print(f"{len(splits.train)} training images, {steps - state.step} steps to go, into {run_dir}")
    print("watch drift_rms and spread (generated / real, 1 is right): the loss is nearly constant by construction")
    with MetricsLog(run_dir, total=steps, start=state.step, show=["drift_rms", "spread"]) as log:
        while state.step < steps:
            real.push(config.queue.push_per_step)
            labels = torch.randperm(NUM_CLASSES)[: drift.classes_per_step]  # [B]
            alpha = guidance.sample(len(labels))  # [B]
            if drift.twins:
                labels, alpha = labels.repeat(2), alpha.repeat(2)
            positives, unconditional = (block.to(device) for block in real.draw(labels))
            gen = generate_problems(generator, labels.to(device), alpha.to(device), positives, drift.num_generated)
            weight = guidance_weight(alpha.to(device), drift.num_generated, drift.num_unconditional)
            twin = gen.detach().roll(len(labels) // 2, dims=0) if drift.twins else None
            terms = drift_loss.terms(gen, positives, unconditional, neg_weight=weight, self_ref=twin)
            loss = total_loss(terms)

            grad_norm = optimizer_step(loss, generator, optimizer, config.optim, step=state.step, total_steps=steps)
            ema.update(generator)
            state.step += 1
            if every(config.log.every, state.step, last=steps):
                log.write(state.step, convergence(terms, drift.temperatures) | {"loss": loss, "grad_norm": grad_norm})
            if every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)

    save_curves(run_dir / "curves.png", read_metrics(run_dir))
    report(run_dir, config.eval)


def check_fits(config: ImagenetConfig, splits: DigitsSplits) -> None:
    """Refuse a generator of another image shape or number of classes, more classes a step, too few samples to judge."""
    shape = config.generator.dit if config.generator.kind == "dit" else config.generator.mlp
    key = f"generator.{config.generator.kind}"
    given = {"channels": shape.channels, "size": shape.size, "num_classes": shape.num_classes}
    expected = {"channels": IMAGE_SHAPE[0], "size": IMAGE_SHAPE[1], "num_classes": NUM_CLASSES}
    for name, value in expected.items():
        if given[name] != value:
            raise ConfigError(f"{key}.{name} must be {value} for the digits, got {given[name]}")
    if config.drift.classes_per_step > NUM_CLASSES:
        raise ConfigError(
            f"drift.classes_per_step must be at most {NUM_CLASSES}, the number of classes, "
            f"got {config.drift.classes_per_step}"
        )
    check_enough_samples(config.eval, splits)


def build_encoder(section: EncoderSection) -> nn.Module:
    """Samples [K, C, H, W] -> {key: [K, F, D]}, frozen."""
    if section.kind == "pixels":
        return PixelFeatures()
    mae = load_mae(Path(section.run))
    try:
        encoder = MaeFeatures(
            mae, maps=section.maps or None, patch_sizes=section.patch_sizes, input_norm=section.input_norm
        )
        encoder(torch.zeros(1, *IMAGE_SHAPE))
    except ValueError as error:
        raise ConfigError(f"encoder.maps or encoder.patch_sizes: {error}") from error
    return encoder


def generate_problems(
    generator: nn.Module, labels: Tensor, alpha: Tensor, positives: Tensor, num_generated: int
) -> Tensor:
    """G samples of each label [B] at its guidance scale [B], in the shape of the positives: [B, G, C, H, W]."""
    noise = torch.randn(len(labels) * num_generated, *positives.shape[2:], device=positives.device)
    samples = generator(noise, labels.repeat_interleave(num_generated), alpha.repeat_interleave(num_generated))
    return samples.unflatten(0, (len(labels), num_generated))


def convergence(terms: dict[str, DriftTerms], temperatures: list[float]) -> dict[str, Tensor]:
    """Figures that tell convergence, means over features; the loss does not: normalisation keeps it nearly constant."""
    drift_rms = torch.stack([term.drift_rms for term in terms.values()]).mean(0)  # [T]
    figures = [term.diagnostics for term in terms.values()]
    by_temperature = {f"drift_rms/{tau:g}": rms for tau, rms in zip(temperatures, drift_rms, strict=True)}
    spread = torch.stack([figure.gen_spread / figure.pos_spread.clamp(min=1e-6) for figure in figures])
    return by_temperature | {
        "drift_rms": drift_rms[max(range(len(temperatures)), key=temperatures.__getitem__)],  # at the largest
        "spread": spread.mean(),
        "positive_mass": torch.stack([figure.positive_mass.mean() for figure in figures]).mean(),
        "floor_share": torch.stack([figure.floor_share.mean() for figure in figures]).mean(),
    }


if __name__ == "__main__":
    main()
