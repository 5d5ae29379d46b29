"""Tables of what `benchmarks.scaling` counts and estimates of the recipes."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from benchmarks.report import print_table
from benchmarks.scaling_estimate import Estimate, Machine, Plan, memory
from benchmarks.scaling_memory import Options, state
from benchmarks.scaling_recipes import TEMPERATURES, Recipe, skeleton, work
from benchmarks.scaling_traffic import Exchange, generated_exchange, gradient_exchange, loss_exchange

TRIED = (  # of the question what fits
    Options(),
    Options(checkpoint_generator=False),
    Options(checkpoint_encoder=False),
    Options(bf16_encoder=False),
    Options(checkpoint_encoder=False, checkpoint_generator=False),
)


def print_work(recipes: Sequence[Recipe]) -> None:
    print(
        "\ncounted on the meta device: parameters, features, TFLOP (2 per multiply-add) of one step without repetition"
    )
    rows = []
    for recipe in recipes:
        counted = work(recipe)
        generated = recipe.images * counted.generate_both_ways
        encoded = recipe.images * counted.encode_both_ways
        real = recipe.labels * (recipe.P + recipe.N) * counted.encode
        parts = [generated, encoded, real, recipe.labels * counted.loss, counted.step(recipe)]
        sizes = [f"{counted.generator_parameters / 1e6:.1f} M", f"{counted.encoder_parameters / 1e6:.0f} M"]
        cells = [*sizes, counted.keys, f"{counted.values / 1e6:.2f} M", *(f"{part / 1e12:.4g}" for part in parts)]
        rows.append([recipe.name, *map(str, cells)])
    header = [
        "recipe",
        "generator",
        "encoder",
        "features",
        "values/sample",
        "generator",
        "encoder, gen",
        "real",
        "loss",
    ]
    print_table([*header, "all"], rows)


def recipe_traffic(recipe: Recipe, gpus: int, machine: Machine) -> dict[str, list[Exchange]]:
    """What each setting exchanges in a step that is done in one part."""
    counted = work(recipe)
    gradients = {
        mode: gradient_exchange(skeleton(recipe), mode, gpus, shard=machine.gpus_per_node, gathered=2)
        for mode in ("ddp", "fsdp", "hsdp")
    }
    always = loss_exchange(counted.keys, len(TEMPERATURES), gpus)
    shared = generated_exchange(1, recipe.G, counted.values, 2, counted.lots)
    return gradients | {"every mode": always, "shard_generated, each label": shared}


def print_traffic(recipes: Sequence[Recipe], gpus: int, machine: Machine) -> None:
    print(
        f"\ncounted: payload of one step on {gpus} GPUs, by collective; weights gathered in bfloat16, done in one part"
    )
    rows = []
    for recipe in recipes:
        for mode, exchanges in recipe_traffic(recipe, gpus, machine).items():
            for each in exchanges:
                cells = [each.purpose, each.operation, f"{each.payload:,}", str(each.calls), str(each.ranks)]
                rows.append([recipe.name, mode, *cells])
    print_table(["recipe", "setting", "of", "collective", "bytes", "calls", "ranks"], rows)


def fits(recipe: Recipe, gpus: int, machine: Machine) -> list[dict[str, Any]]:
    """Memory of every way to keep things, at one label a part and at all of a rank's labels."""
    whole = -(-recipe.labels // gpus)
    found = []
    for kept in TRIED:
        for mode in ("ddp", "fsdp"):
            needed = [memory(recipe, Plan(mode, size, kept, False), gpus, machine) for size in (1, whole)]
            found.append({"kept": str(kept), "mode": mode, "one label": needed[0], "all labels": needed[1]})
    return found


def print_fits(recipe: Recipe, gpus: int, machine: Machine, found: list[dict[str, Any]]) -> None:
    kept = state(recipe, bf16_encoder=True)
    print(f"\nestimated: GB per GPU of {recipe.name} on {gpus} GPUs of {machine.memory / 1e9:.0f} GB; * does not fit")
    parts = ", ".join(f"{f.name} {getattr(kept, f.name) / 1e9:.2f}" for f in fields(kept))
    print(f"on the meta device: {parts} GB (encoder in bfloat16; {recipe.averages} averages)")
    rows = []
    for each in found:
        sizes = [each["one label"], each["all labels"]]
        rows.append(
            [each["kept"], each["mode"], *(f"{s / 1e9:.1f}{'*' if s > machine.memory else ' '}" for s in sizes)]
        )
    print_table(["kept for the backward pass", "mode", "one label at a time", "all labels of a rank"], rows)


def print_estimates(estimates: Sequence[Estimate], recipes: Sequence[Recipe], machine: Machine) -> None:
    print("\nestimated, nobody ran it: the fastest setting that fits, by counted work and these assumptions:")
    print("  " + ", ".join(f"{name} {value:g}" for name, value in asdict(machine).items()))
    by_name = {recipe.name: recipe for recipe in recipes}
    rows = []
    for each in estimates:
        recipe = by_name[each.recipe]
        share = f"{each.labels}" if each.shared_by == 1 else f"1 by {each.shared_by}"
        again = "generator, encoder" if each.plan.options.checkpoint_generator else "encoder"
        stored = "stored" if each.plan.stored_references and each.parts > 1 else "encoded"
        flops = work(recipe).step(recipe) / each.gpus / each.step / machine.peak_flops
        figures = [each.memory / 1e9, each.compute, each.exchange, each.exposed, each.step, recipe.images / each.step]
        cells = [each.plan.mode, share, each.parts, again, stored, *(f"{x:.3g}" for x in figures), f"{flops:.0%}"]
        days = recipe.steps * each.step / 86400
        rows.append([each.recipe, str(each.gpus), *map(str, cells), f"{days:.2f}", f"{days * each.gpus:.0f}"])
    header = ["recipe", "GPUs", "mode", "labels", "parts", "recomputed", "real features", "GB", "compute s"]
    print_table([*header, "exchange s", "exposed s", "step s", "images/s", "MFU", "run, days", "GPU-days"], rows)
