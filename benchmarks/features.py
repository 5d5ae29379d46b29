"""What share of a training step is the drifting loss, when it drifts in the features of a deep encoder?

    python -m benchmarks.features            the paper's networks: some ten minutes on two cores, 9 GiB
    python -m benchmarks.features --quick    small networks: does it run?

The generator is the paper's B/2 (each block recomputed in the backward pass, else its activations do not fit), the
encoder its masked auto-encoder of width 256 with all 86 features. Their weights are random and the latents are noise:
only time is measured, and it does not depend on them. Fewer labels per step than in the paper: every part but the
optimiser's update, which is left out, grows with their number alike.

After whole steps the loss is timed by itself, forward and backward from the same features: FeatureDriftLoss, a loop
that calls DriftLoss for each key, and a loop over the official formula (official_torch.py).
Shapes: B labels, G generated, P positives, N unconditional samples per label; K samples, F locations, D features.
"""

import os
import resource
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn

from benchmarks.feature_losses import ALPHA, LOSSES, FeatureBatch, Sizes, feature_drift_loss
from benchmarks.measure import interleave, ratios
from benchmarks.options import options
from benchmarks.report import print_table, save
from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOSS_PHASE = "drifting loss, both ways"


def training_step(
    generator: DiTGenerator, encoder: MaeFeatures, sizes: Sizes, real: Tensor
) -> tuple[dict[str, float], FeatureBatch]:
    """Seconds of each part of one step, and the features that it saw; real latents [B (P + N), C, H, W]."""
    seconds, began = {}, time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[phase], began = now - began, now

    cfg = generator.cfg
    noise = torch.randn(sizes.B * sizes.G, cfg.channels, cfg.size, cfg.size)
    labels = torch.arange(sizes.B).repeat_interleave(sizes.G)
    samples = generator(noise, labels, torch.full(labels.shape, ALPHA))
    lap("generator forward")
    with torch.no_grad():
        blocks = {key: sizes.split(features) for key, features in encoder(real).items()}
    lap("encoding real")
    leaf = samples.detach().requires_grad_()
    features = encoder(leaf)
    lap("encoding generated")
    batch = FeatureBatch(
        sizes,
        gen={key: value.detach().requires_grad_() for key, value in features.items()},
        pos={key: pos for key, (pos, _) in blocks.items()},
        neg={key: neg for key, (_, neg) in blocks.items()},
    )
    gradients = feature_drift_loss(batch)
    lap(LOSS_PHASE)
    torch.autograd.backward(list(features.values()), gradients)
    lap("encoder backward")
    samples.backward(leaf.grad)
    lap("generator backward")
    generator.zero_grad()
    return seconds, batch


def build(generator: GeneratorConfig, mae: MaeConfig) -> tuple[DiTGenerator, MaeFeatures]:
    """Both networks with random weights; the generator's last layer too, else every sample is zero."""
    model = DiTGenerator(generator)
    nn.init.normal_(model.final.linear.weight, std=0.02)
    return model, MaeFeatures(MaskedAutoencoder(mae))


def print_step(steps: list[dict[str, float]]) -> dict[str, float]:
    """Table of the parts; their medians."""
    medians = {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}
    total = sum(medians.values())
    rows = [[phase, f"{seconds:.2f}", f"{seconds / total:.1%}"] for phase, seconds in medians.items()]
    print_table(["part of a step", "seconds", "share"], [*rows, ["whole step", f"{total:.2f}", "100.0%"]])
    stored = medians[LOSS_PHASE] / (total - medians["generator forward"])
    print(f"if the generator's blocks were stored instead of recomputed, the loss would be {stored:.1%}")
    return medians


def print_losses(seconds: dict[str, list[float]], rest: float) -> None:
    """Table of the losses by themselves; `rest` is the step without its loss, in seconds."""
    rows = []
    for name, ratio in ratios(seconds, "ours").items():
        median = statistics.median(seconds[name])
        share = f"{median / (rest + median):.1%}"
        rows.append([name, f"{min(seconds[name]):.3f}", f"{median:.3f}", f"{ratio:.2f}", share])
    print()
    print_table(["loss by itself, both ways", "min s", "median s", "time / ours", "share of a step"], rows)


def draw_picture(medians: dict[str, float], losses: dict[str, list[float]], title: str, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(3, 2))
    total = sum(medians.values())
    colours = ["#d55e00" if phase == LOSS_PHASE else "#56b4e9" for phase in medians]
    bars = left.barh(list(medians), list(medians.values()), color=colours)
    left.bar_label(bars, [f"{seconds:.1f} s, {seconds / total:.1%}" for seconds in medians.values()], padding=3)
    left.set_title("parts of a training step")
    alone = {name: statistics.median(times) for name, times in losses.items()}
    bars = right.barh(list(alone), list(alone.values()), color="#d55e00")
    right.bar_label(bars, [f"{seconds:.2f} s" for seconds in alone.values()], padding=3)
    right.set_title("drifting loss by itself, both ways")
    for axis in (left, right):
        axis.invert_yaxis()
        axis.set_xlabel("median time (s)")
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = options(__doc__, "features", quick="small networks")
    parser.add_argument("--labels", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="measured, after a small one to warm up")
    parser.add_argument("--rounds", type=int, default=5, help="of the losses by themselves")
    parser.add_argument("--threads", type=int, default=cores, help="of torch; default: every core")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    sizes, mae = Sizes(arguments.labels, G=64, P=64, N=16), MaeConfig()
    generator_config = replace(generator_preset("B/2"), checkpoint_blocks=True)
    if arguments.quick:
        sizes, mae = Sizes(arguments.labels, G=4, P=4, N=2), MaeConfig(base_channels=16)
        generator_config = replace(generator_config, hidden=64, depth=2, heads=4)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator, encoder = build(generator_config, mae)
    real = torch.randn(sizes.B * (sizes.P + sizes.N), mae.channels, generator_config.size, generator_config.size)
    small = Sizes(B=1, G=2, P=1, N=1)
    training_step(generator, encoder, small, real[:2])
    steps = []
    for _ in range(arguments.steps):
        batch = None  # one step's features are alive at a time
        seconds, batch = training_step(generator, encoder, sizes, real)
        steps.append(seconds)

    problems = sum(sizes.B * features.shape[1] for features in batch.gen.values())
    title = (
        f"generator {generator_config.hidden} x {generator_config.depth}, encoder width {mae.base_channels}, "
        f"{sizes.B} label(s) x {sizes.G} generated, {sizes.P} positives, {sizes.N} unconditional; "
        f"{len(batch.gen)} features, {problems} problems; {arguments.threads} thread(s)"
    )
    print(f"{title}\nrandom weights and latents; median of {len(steps)} steps, seed {arguments.seed}\n")
    medians = print_step(steps)
    calls = {name: partial(loss, batch) for name, loss in LOSSES.items()}
    interleave(calls, 1)  # warm up
    losses = interleave(calls, arguments.rounds)
    print_losses(losses, rest=sum(medians.values()) - medians[LOSS_PHASE])
    figures = {
        "setting": title,
        "seed": arguments.seed,
        "steps": steps,
        "loss_seconds": losses,
        "peak_process_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(f"\npeak memory of the process {figures['peak_process_bytes'] / 2**30:.1f} GiB")
    draw_picture(medians, losses, title, save("features", figures, arguments.root))


if __name__ == "__main__":
    main()
