"""Train a small KL autoencoder, where that of Stable Diffusion is not to be had or too large.

    python -m domains.imagenet.train_tokenizer data.path=TRAIN.zarr data.validation=VAL.zarr
    python -m domains.imagenet.train_tokenizer data.kind=folder data.path=IMAGES data.size=64 data.crop=random

The same command continues a stopped run. At its end runs/<run.name>/tokenizer holds the averaged autoencoder as
diffusers stores it, its scale and shift measured on training images so that latents have zero mean and unit variance:

    python -m domains.imagenet.encode_latents tokenizer.kind=small_kl tokenizer.path=runs/tokenizer/tokenizer ...

What it learns from: domains/imagenet/tokenizers/training_loss.py.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from domains.imagenet.config import CONFIGS, free_keys
from domains.imagenet.data.image_data import ImageData, spread_over, to_float
from domains.imagenet.data.section import load_images, load_training_data, missing_data, missing_held_out
from domains.imagenet.data.whole_images import check_decodable
from domains.imagenet.missing import refuse_missing
from domains.imagenet.tokenizer_training import TokenizerTrainingConfig
from domains.imagenet.tokenizers.kl import KlTokenizer
from domains.imagenet.tokenizers.training_loss import TokenizerTraining, peak_signal_to_noise
from domains.imagenet.training_batches import TrainingBatches
from drifting.training.atomic_file import replace_text
from drifting.training.checkpoint import Checkpoint, load_average
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

FOLDER = "tokenizer"  # in the run directory
MEASURED_IMAGES = 2000  # training images for scale and shift


@command(TokenizerTrainingConfig, "tokenizer", configs=CONFIGS)
def main(config: TokenizerTrainingConfig) -> None:
    """Train, checkpoint, measure, and save the tokenizer."""
    config.parallel.refuse_sharing("for a tokenizer: an autoencoder has no drifting problems")
    world = prepare(config.run, config.parallel)
    own, weight = world.own(config.batch, "batch"), world.weight(config.batch)
    refuse_missing(missing_data(config.data) + missing_held_out(config.data))
    data = load_training_data(config.data)
    held_out = load_images(config.data, "validation") if config.data.validation else None
    check_fits(config, data)
    check_decodable({"data.path": data, "data.validation": held_out}, Path(config.run.root))
    run_dir = open_run(config.run, config, free=free_keys(config.run))
    seed_everything(config.run.seed)
    training = TokenizerTraining(config.autoencoder.build(), config.edge_weight, config.kl_weight).to(world.device)
    ema = Ema(training, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(training, world, config.parallel, copies=ema.models)
    telemetry = Telemetry(config.log, world)
    optimizer = build_optimizer(training, config.optim)
    batches = TrainingBatches(data, config.batch, own, config.run.seed)
    state = TrainState()
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, model=training, ema=ema, optimizer=optimizer, batches=batches, state=state
    )
    checkpoint.load_latest()

    steps = config.run.steps
    loop = telemetry.loop(run_dir, model, total=steps, start=state.step, show=["psnr", "kl"], config=config)
    with StopRequest() as stop, loop, checkpoint.in_background():
        while state.step < steps:
            with telemetry.waiting_for("training images"):
                images, _ = batches.take(state.step)
                source = stream(config.run.seed, "crop", state.step, own.start)
                images = random_squares(images, config.crop, source).to(world.device)
            with telemetry.region("forward"):
                losses = model(images, draw_noise(config, state.step, images)[own])
            loss = losses.loss.mean() * weight
            with telemetry.region("backward"):
                grad_norm = optimizer_step(loss, training, optimizer, config.optim, step=state.step, total_steps=steps)
            ema.update(training)
            state.step += 1
            telemetry.step(config.batch)
            if every(config.log.every, state.step, last=steps):
                figures = {name: getattr(losses, name).mean() for name in ("absolute", "edges", "kl")}
                figures["psnr"] = peak_signal_to_noise(losses.squared).mean()
                telemetry.write(state.step, world.mean(figures, weight) | {"grad_norm": grad_norm})
            if held_out and config.eval.every and every(config.eval.every, state.step) and state.step < steps:
                telemetry.write(state.step, {"held_out/psnr": held_out_psnr(ema.model(), held_out, config)})
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
    if state.step < steps:
        world.finish()
        stop.announce(run_dir, step=state.step, total=steps)
        return

    psnr = None if held_out is None else held_out_psnr(ema.model(), held_out, config)
    world.finish()
    if world.is_main:
        scale, shift = save_tokenizer(run_dir, config, data, world.device)
        report = {"step": steps, "held_out/psnr": psnr, "scale": scale, "shift": shift}
        replace_text(run_dir / "metrics.json", json.dumps(report, indent=2) + "\n")
        figure = (
            "no held-out PSNR, as data.validation names nothing" if psnr is None else f"held-out PSNR {psnr:.2f} dB"
        )
        world.say(f"{figure}; latent = (z - {shift:.4f}) * {scale:.4f}; {run_dir / FOLDER}")


def check_fits(config: TokenizerTrainingConfig, data: ImageData) -> None:
    """Refuse images that are not RGB, smaller than a crop, or of sides that the autoencoder does not divide.

    Raises:
        ConfigError: naming the key.
    """
    channels, height, width = data.sample_shape
    if channels != 3:
        raise ConfigError(f"data.path must hold RGB images, got {channels} channels")
    if config.crop > min(height, width):
        raise ConfigError(f"crop must be at most {min(height, width)}, the side of the images, got {config.crop}")
    step = config.autoencoder.patch
    if height % step or width % step:
        raise ConfigError(f"data.path must hold images with sides divisible by {step}, got {height} x {width}")


def random_squares(images: Tensor, side: int, source: torch.Generator) -> Tensor:
    """A square of each image [K, C, H, W] at a place drawn from `source`, [K, C, side, side]; side 0: all of it."""
    height, width = images.shape[2:]
    if side == 0:
        return images
    tops = torch.randint(height - side + 1, (len(images),), generator=source).tolist()
    lefts = torch.randint(width - side + 1, (len(images),), generator=source).tolist()
    places = zip(images, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + side, left : left + side] for image, top, left in places])


def draw_noise(config: TokenizerTrainingConfig, step: int, images: Tensor) -> Tensor:
    """Noise of the posteriors of the whole batch [batch, c, h, w] of all ranks, the same on each."""
    source = stream(config.run.seed, "posterior", step, device=images.device)
    sides = [side // config.autoencoder.patch for side in images.shape[2:]]
    shape = (config.batch, config.autoencoder.latent_channels, *sides)
    return torch.randn(shape, generator=source, device=images.device)


@torch.no_grad()
def held_out_psnr(model: torch.nn.Module, data: ImageData, config: TokenizerTrainingConfig) -> float:
    """Mean PSNR in dB of images decoded from the mean of their posterior."""
    device = next(model.parameters()).device
    values = []
    for part in spread_over(len(data), config.eval.images).split(config.eval.batch):
        images = to_float(data.read(part)).to(device)
        noise = torch.zeros_like(draw_noise(config, 0, images)[:1]).expand(len(part), -1, -1, -1)
        values.append(peak_signal_to_noise(model(images, noise).squared))
    return float(torch.cat(values).mean())


@torch.no_grad()
def save_tokenizer(
    run_dir: Path, config: TokenizerTrainingConfig, data: ImageData, device: torch.device
) -> tuple[float, float]:
    """Save the averaged autoencoder of the last checkpoint with its scale and shift, which are returned."""
    fresh = TokenizerTraining(config.autoencoder.build(), config.edge_weight, config.kl_weight)
    autoencoder = load_average(run_dir, fresh, config.ema)[0].autoencoder
    tokenizer = KlTokenizer(autoencoder, scale=1.0, shift=0.0).to(device)
    source = torch.Generator(device).manual_seed(0)
    batches = spread_over(len(data), MEASURED_IMAGES).split(config.eval.batch)
    latents = torch.cat([tokenizer.encode(to_float(data.read(part)).to(device), source).cpu() for part in batches])
    scale, shift = 1 / float(latents.std()), float(latents.mean())
    autoencoder.register_to_config(scaling_factor=scale, shift_factor=shift)
    temporary = run_dir / f".{FOLDER}"
    autoencoder.to("cpu").save_pretrained(temporary)
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    temporary.rename(run_dir / FOLDER)
    return scale, shift


if __name__ == "__main__":
    main()
