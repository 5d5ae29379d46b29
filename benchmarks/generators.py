"""How fast does the generator sample, what does it need to train, and how soon is the first sample there?

    python -m benchmarks.generators                        B/2 and L/2 on one core, some twenty minutes
    python -m benchmarks.generators --device cuda --bf16   on a GPU
    python -m benchmarks.generators --quick                a tiny network: does it run?

Sampling: ours, ours with its blocks compiled (`block.compile()`), and the same network in the plainest PyTorch
(plain_dit.py), whose samples must equal ours to 2e-5 before anything is timed. Every candidate in every round; ratios
are taken within a round; seconds are the processor's on the CPU. "500 evaluations" is no measurement: it is 500 times
ours, what 250 steps with two evaluations each, as diffusion transformers are sampled with guidance, cost on a network
of this size.
Training: peak memory of one forward and backward pass beyond the parameters, in processes of their own.
Start: seconds of a fresh process that imports, loads a saved folder and draws one sample.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.bar_chart import save_bars
from benchmarks.generator_networks import Batch, awake, batch_of, compiled_copy, config_of, plain_copy
from benchmarks.generator_processes import measure_start, measure_training
from benchmarks.machine import use_one_core
from benchmarks.measure import interleave, quartiles, ratios, rounds_within, with_core_share
from benchmarks.options import add_core, add_rounds, options
from benchmarks.report import print_table, save

STEPS, EVALUATIONS_PER_STEP = 250, 2  # of a guided diffusion transformer
EQUAL = 2e-5


def sampler(model: nn.Module, batch: Batch, bf16: bool) -> Callable[[], Tensor]:
    """One call that draws the samples of the batch and waits for them."""
    device = batch[0].device.type

    def draw() -> Tensor:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            samples = model(*batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return samples

    return draw


def check_equal(models: dict[str, nn.Module], batch: Batch) -> dict[str, float]:
    """Largest difference to the plain network's samples over their largest magnitude, in float32.

    Raises:
        SystemExit: more than EQUAL.
    """
    expected = sampler(models["plain PyTorch"], batch, bf16=False)()
    found = {}
    for name, model in models.items():
        samples = sampler(model, batch, bf16=False)()
        found[name] = float((samples - expected).abs().max() / expected.abs().max())
        if not found[name] <= EQUAL:
            sys.exit(f"error: {name} differs from the plain network by {found[name]:.1e}, allowed are {EQUAL}")
    return found


def measure_sampling(name: str, counts: list[int], arguments: argparse.Namespace) -> list[dict]:
    """Times of every candidate at each batch size."""
    model = awake(config_of(name), arguments.device, arguments.seed)
    models: dict[str, nn.Module] = {"ours": model, "plain PyTorch": plain_copy(model)}
    if arguments.compile:
        models["ours, compiled"] = compiled_copy(model)
    results = []
    for count in counts:
        batch = batch_of(model.cfg, count, arguments.device)
        errors = check_equal(models, batch)
        calls = {candidate: sampler(net, batch, arguments.bf16) for candidate, net in models.items()}
        rounds = rounds_within(arguments.seconds, calls, least=arguments.rounds)
        # One thread on the CPU and no waiting: the processor's time is the work, and neighbours do not count.
        clock = time.process_time if arguments.device == "cpu" else time.perf_counter
        seconds, core_share = with_core_share(partial(interleave, calls, rounds, clock=clock))
        results.append(
            {"model": name, "batch": count, "seconds": seconds, "core_share": core_share, "difference": errors}
        )
        print_sampling(results[-1])
    return results


def print_sampling(result: dict) -> None:
    count, seconds = result["batch"], result["seconds"]
    share = f"{len(seconds['ours'])} rounds, {result['core_share']:.0%} of the core"
    print(f"\n{result['model']}, batches of {count}: {share}")
    rows = []
    for name, ratio in ratios(seconds, "ours").items():
        per_image = [one / count for one in seconds[name]]
        middle = statistics.median(per_image)
        times = [f"{1 / middle:.3g}", f"{min(per_image):.4f}", f"{middle:.4f}"]
        rows.append([name, *times, f"{ratio:.2f}", f"{result['difference'][name]:.1e}"])
    evaluations = STEPS * EVALUATIONS_PER_STEP
    of_ours = evaluations * statistics.median(seconds["ours"]) / count
    times = [f"{1 / of_ours:.3g}", "-", f"{of_ours:.1f}", str(evaluations), "-"]
    rows.append([f"{evaluations} evaluations (multiplied)", *times])
    print_table(["", "images/s", "min s/image", "median s/image", "time / ours", "difference to plain"], rows)


def draw_picture(results: list[dict], path: Path) -> None:
    names = list(results[0]["seconds"])
    groups = [f"{result['model']}, batches of {result['batch']}" for result in results]
    rate = {
        name: [quartiles([result["batch"] / one for one in result["seconds"][name]]) for result in results]
        for name in names
    }
    relative = {name: [ratios(result["seconds"], "ours")[name] for result in results] for name in names}
    panels = {"images per second": rate, "time over ours (median of rounds, bars: quartiles)": relative}
    save_bars(path, groups, panels, title="Sampling from the generator, one pass")


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "generators", quick="a tiny network, nothing compiled")
    add_core(parser)
    add_rounds(parser, least=5, seconds=60.0, of="a batch size")
    parser.add_argument("--models", nargs="+", default=["B/2", "L/2"], help="presets")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="samples at a time")
    parser.add_argument("--device", default="cpu", help="cpu: one core; or cuda")
    parser.add_argument("--bf16", action="store_true", help="time under bfloat16 autocast")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args(argv)
    core = use_one_core(arguments.cpu)
    if arguments.quick:
        arguments.models, arguments.batches, arguments.compile, arguments.seconds = ["tiny"], [1, 2], False, 0.0
    precision = "bfloat16 autocast" if arguments.bf16 else "float32"
    print(f"{arguments.device}, core {core}, one thread, {precision}, random weights, seed {arguments.seed}")
    sampling = [result for name in arguments.models for result in measure_sampling(name, arguments.batches, arguments)]
    first = arguments.models[0]
    figures = {
        "core": core,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device,
        "precision": precision,
        "seed": arguments.seed,
        "sampling": sampling,
        "training_peak_bytes": measure_training(first, max(arguments.batches), arguments.seed),
        "start_seconds": measure_start(first, 2 if arguments.quick else 3, arguments.seed),
    }
    draw_picture(sampling, save("generators", figures, arguments.root))


if __name__ == "__main__":
    main()
