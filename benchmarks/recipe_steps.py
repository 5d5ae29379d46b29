"""What does a training step of the five released recipes take on this GPU? One process, its share of the labels.

    python -m benchmarks.recipe_steps                        each recipe as one of 8 GPUs runs it
    python -m benchmarks.recipe_steps --share 64 --recipes "latent B/2"
    python -m benchmarks.recipe_steps --quick                a tiny recipe, on a CPU too: does it run?

Real networks with random weights, noise for images: times do not depend on either. A step is the training command's:
bfloat16 autocast, blocks compiled, a frozen bfloat16 encoder that is recomputed in the backward pass, labels in parts,
clipping, AdamW and the averages. Beside it stands what `benchmarks.scaling` estimates for the same plan without the
exchanges with other GPUs, which do not take place here. MFU: FLOPs that a step needs over the time and the peak.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.bar_chart import save_bars
from benchmarks.measure import quartiles
from benchmarks.options import options
from benchmarks.report import print_table, save
from benchmarks.scaling_estimate import Machine, Plan, estimate, fitting_plans, place
from benchmarks.scaling_memory import Options
from benchmarks.scaling_recipes import QUICK, RECIPES, TEMPERATURES, Recipe, build_encoder, generator_config, work
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.problems import StepProblems, backward
from drifting import DriftLoss, FeatureDriftLoss, guidance_weight
from drifting.training.config import OptimConfig, ParallelConfig
from drifting.training.ema import Ema
from drifting.training.flops import peak_flops
from drifting.training.optimizer import apply_gradient, build_optimizer
from drifting.training.parallelize import parallelize
from drifting.training.step_timer import StepTimer
from drifting.training.world import World

ALPHA = 1.5
DECAYS = (0.999, 0.9995, 0.9998, 0.9999)
OPTIM = OptimConfig(lr=1e-5)


def build_networks(recipe: Recipe, device: torch.device, plan: Plan) -> tuple[DiTGenerator, nn.Module]:
    """Random weights; the generator's last layer too, else every sample is zero."""
    options = plan.options
    with device:
        generator = DiTGenerator(generator_config(recipe, checkpoint=options.checkpoint_generator))
        nn.init.normal_(generator.final.linear.weight, std=0.02)
    dtype = torch.bfloat16 if options.bf16_encoder and device.type == "cuda" else None
    encoder = build_encoder(recipe, dtype=dtype, checkpoint=options.checkpoint_encoder, device=device)
    return generator.to(device), encoder.to(device)


def draw_problems(recipe: Recipe, generator: DiTGenerator, labels: int, device: torch.device) -> StepProblems:
    cfg = generator.cfg
    image = (cfg.channels, cfg.size, cfg.size)
    alpha = torch.full((labels,), ALPHA, device=device)
    return StepProblems(
        labels=torch.arange(labels, device=device),
        alpha=alpha,
        noise=torch.randn(labels, recipe.G, *image, device=device),
        style=torch.randint(cfg.style_codes, (labels, recipe.G, cfg.style_tokens), device=device),
        positives=torch.randn(labels, recipe.P, *image, device=device),
        unconditional=torch.randn(labels, recipe.N, *image, device=device),
        neg_weight=guidance_weight(alpha, recipe.G, recipe.N),
        twins=False,
        weight=1.0,
    )


def fastest_plan(recipe: Recipe, share: int, machine: Machine) -> Plan | None:
    """Of those that `benchmarks.scaling` expects to fit with all weights on this GPU; None if none does."""
    kept = (Options(), Options(checkpoint_generator=False))
    plans = [plan for plan in fitting_plans(recipe, share, machine, kept) if plan.mode == "ddp"]
    return min(plans, key=lambda plan: estimate(recipe, plan, share, machine).compute, default=None)


def whole_step(
    recipe: Recipe, plan: Plan, labels: int, device: torch.device, timer: StepTimer, *, compile: bool
) -> Callable[[], None]:
    """A function that does one step of the training command, its parts timed."""
    torch.manual_seed(0)
    generator, encoder = build_networks(recipe, device, plan)
    ema = Ema(generator, DECAYS[: recipe.averages])
    model = parallelize(generator, World(device=device), ParallelConfig(precision="bfloat16", compile=compile))
    optimizer = build_optimizer(generator, OPTIM)
    loss = FeatureDriftLoss(timer.wrap("encoder", encoder), DriftLoss(TEMPERATURES))
    parts = -(-labels // plan.labels_per_part)

    def step() -> None:
        batch = draw_problems(recipe, generator, labels, device)
        optimizer.zero_grad()
        kept = torch.bfloat16 if plan.stored_references else None
        value, _ = backward(model, loss, batch, timer, parts=parts, with_terms=False, keep_references=kept)
        with timer.region("update"):
            apply_gradient(value, generator, optimizer, OPTIM, step=0, total_steps=1)
            ema.update(generator)
        timer.step(labels * recipe.G)

    return step


def measure(recipe: Recipe, arguments: argparse.Namespace, device: torch.device) -> dict:
    """Seconds of steps after one that warms up, where they go, peak memory, and the estimates; as JSON can hold it."""
    machine, share = Machine(), arguments.share
    plan = fastest_plan(recipe, share, machine)
    if plan is None:
        return {"recipe": recipe.name, "failed": f"no plan for {share} GPUs fits one with all weights"}
    timer, (labels, _) = StepTimer(device), place(recipe, share)
    step = whole_step(recipe, plan, labels, device, timer, compile=arguments.compile)
    step()
    wait_for(device)
    timer.figures()
    seconds = []
    for _ in range(arguments.steps):
        began = time.perf_counter()
        step()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    figures = timer.figures()
    needed = work(recipe).step(recipe) * labels / recipe.labels
    peak, expected = peak_flops(device, None), estimate(recipe, plan, share, machine)
    return {
        "recipe": recipe.name,
        "labels": labels,
        "labels_per_part": plan.labels_per_part,
        "kept": f"{plan.options}; references {'kept' if plan.stored_references else 'encoded in each pass'}",
        "seconds": seconds,
        "regions": {name.removeprefix("time/"): value for name, value in figures.items() if name.startswith("time/")},
        "peak_gib": figures["peak_memory_gib"],
        "flops": needed,
        "mfu": None if peak is None else needed / statistics.median(seconds) / peak,
        "estimated_seconds": expected.compute,
        "estimated_gib": expected.memory / 2**30,
    }


def forget(device: torch.device) -> None:
    """Nothing of one recipe stays for the next: neither its networks nor what was compiled for them."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def print_result(result: dict) -> None:
    if "failed" in result:
        print(f"\n{result['recipe']}: {result['failed']}")
        return
    middle = statistics.median(result["seconds"])
    mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    print(
        f"\n{result['recipe']}, {result['labels']} labels, {result['labels_per_part']} a part, {result['kept']}\n"
        f"step {middle:.3f} s ({', '.join(f'{second:.3f}' for second in result['seconds'])}), "
        f"estimated {result['estimated_seconds']:.3f} s; peak {result['peak_gib']:.1f} GiB, "
        f"estimated {result['estimated_gib']:.1f} GiB; {result['flops'] / 1e15:.3f} PFLOP{mfu}"
    )
    parts = sorted(result["regions"].items(), key=lambda item: -item[1])
    print_table(["region", "s / step"], [[name, f"{seconds:.3f}"] for name, seconds in parts])


def draw_picture(results: list[dict], path: Path, title: str) -> None:
    measured = [result for result in results if "failed" not in result]
    seconds = {
        "measured": [quartiles(result["seconds"]) for result in measured],
        "estimated": [result["estimated_seconds"] for result in measured],
    }
    memory = {
        "measured": [result["peak_gib"] for result in measured],
        "estimated": [result["estimated_gib"] for result in measured],
    }
    panels = {"seconds a step": seconds, "peak memory (GiB)": memory}
    save_bars(path, [result["recipe"] for result in measured], panels, title=title)


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "recipe_steps", quick="a tiny recipe")
    parser.add_argument("--share", type=int, default=8, help="GPUs that share a step's labels; this is one of them")
    parser.add_argument("--recipes", nargs="+", choices=[r.name for r in RECIPES], default=[r.name for r in RECIPES])
    parser.add_argument("--steps", type=int, default=3, help="measured, two or more, after one that warms up")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args(argv)
    if arguments.steps < 2:
        parser.error(f"--steps must be at least 2, for a spread, got {arguments.steps}")
    recipes = [recipe for recipe in RECIPES if recipe.name in arguments.recipes]
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if arguments.quick:
        recipes, arguments.compile = list(QUICK), False
    elif device.type == "cpu":
        sys.exit(
            "error: no CUDA device, and a step of these recipes takes hours without one; --quick tells whether it runs"
        )
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, one of {arguments.share} that share a step, blocks {'' if arguments.compile else 'not '}compiled")
    results = []
    for recipe in recipes:
        try:
            results.append(measure(recipe, arguments, device))
        except torch.OutOfMemoryError as error:
            results.append({"recipe": recipe.name, "failed": str(error).partition(". ")[0]})
        print_result(results[-1])
        forget(device)
    figures = {"device": name, "share": arguments.share, "compiled": arguments.compile, "results": results}
    draw_picture(results, save("recipe_steps", figures, arguments.root), f"Training step, {name}")


if __name__ == "__main__":
    main()
