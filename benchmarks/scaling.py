"""How does training scale with processes here, and what would the released recipes take on 8, 64 and 512 H100s?

    python -m benchmarks.scaling            some fifteen minutes on two cores, 3 GiB
    python -m benchmarks.scaling --quick    tiny networks: does it run?

Measured: a whole step of small networks on 1, 2 and 4 processes (gloo), with DDP, FSDP, HSDP and shared generated
samples; weak scaling keeps the labels of a process, strong scaling those of all. What a step exchanges is counted and
must equal the formulas. Counted: FLOPs, bytes and peak memory of the five released recipes, on the meta device.
Estimated: everything about H100s, from these counts and the assumptions that are printed with it; nobody ran it.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch

from benchmarks.bar_chart import COLOURS
from benchmarks.options import options
from benchmarks.report import print_table, save
from benchmarks.scaling_estimate import Estimate, Machine, best
from benchmarks.scaling_memory import Options
from benchmarks.scaling_processes import QUICK as QUICK_SIZES
from benchmarks.scaling_processes import Sizes, measure_processes
from benchmarks.scaling_recipes import QUICK, RECIPES, work
from benchmarks.scaling_tables import fits, print_estimates, print_fits, print_traffic, print_work, recipe_traffic
from benchmarks.scaling_traffic import Exchange, totals

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GPUS = (8, 64, 512)
QUICK_GPUS = (2, 8, 32)
KEPT = (Options(), Options(checkpoint_generator=False))  # of which the estimates choose
Measured = dict[int, list[dict[str, Any]]]  # processes -> results of every rank, by scaling and mode


def print_measured(measured: Measured, cores: int) -> None:
    """Of the slowest rank in each step, medians over steps; processor time relative to one process alone."""
    print(f"\nmeasured: one training step of small networks, gloo, one thread a process, {cores} core(s) for all")
    base = {kind: _processor(measured[1], f"{kind} single") for kind in ("weak", "strong")}
    rows = []
    for ranks, results in measured.items():
        for name in results[0]:
            kind, mode = name.split()
            wall = _wall(results, name)
            images = sum(rank[name]["images"] for rank in results)
            ratio = _processor(results, name) / base[kind]
            waiting = max(rank[name]["split"].get("communication", 0.0) for rank in results)
            cells = [images, f"{1e3 * wall:.0f}", f"{images / wall:.0f}", f"{ratio:.2f}", f"{1e3 * waiting:.0f}"]
            rows.append([f"{kind} {mode}", str(ranks), *map(str, cells)])
    header = [
        "scaling, mode",
        "processes",
        "images/step",
        "ms/step",
        "images/s",
        "processor s/image",
        "most waiting ms",
    ]
    print_table(header, sorted(rows, key=lambda row: row[0].split()[0], reverse=True))


def _wall(results: list[dict[str, Any]], name: str) -> float:
    return statistics.median(map(max, zip(*(rank[name]["seconds"] for rank in results), strict=True)))


def _processor(results: list[dict[str, Any]], name: str) -> float:
    return sum(rank[name]["processor"] for rank in results) / sum(rank[name]["images"] for rank in results)


def check_counted(measured: Measured) -> None:
    """Print what was counted beside the formulas.

    Raises:
        SystemExit: they differ.
    """
    print("\ncounted: bytes of one rank's collectives in one step; the formulas give the same")
    rows, wrong = [], []
    for ranks, results in measured.items():
        for name, figures in results[0].items():
            formula = totals(Exchange(**each) for each in figures["expected"])
            hook = figures["hook"]
            gradients = sum(each["payload"] for each in figures["expected"] if each["purpose"] == "gradients")
            if figures["payload"] != formula or (hook is not None and hook != gradients):
                wrong.append(f"{name} on {ranks}: counted {figures['payload']}, formula {formula}, hook {hook}")
            operations = ("all-reduce", "all-gather", "reduce-scatter")
            cells = [f"{figures['payload'].get(each, 0):,} / {figures['calls'].get(each, 0)}" for each in operations]
            rows.append([name, str(ranks), *cells])
    print_table(
        ["scaling, mode", "processes", "all-reduce / calls", "all-gather / calls", "reduce-scatter / calls"], rows
    )
    if wrong:
        sys.exit("error: " + "; ".join(wrong))


def draw_picture(measured: Measured, estimates: Sequence[Estimate], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    base = {kind: _processor(measured[1], f"{kind} single") for kind in ("weak", "strong")}
    for index, mode in enumerate(("ddp", "fsdp", "shared", "hsdp")):
        for kind, line in (("weak", "o-"), ("strong", "s--")):
            points = [
                (ranks, _processor(results, name) / base[kind])
                for ranks, results in measured.items()
                if (name := f"{kind} {mode}") in results[0]
            ]
            if points:
                left.plot(*zip(*points, strict=True), line, color=COLOURS[index], label=f"{mode}, {kind}")
    left.set(xlabel="processes", ylabel="processor time per image, over one process", title="measured here, gloo")
    left.set_xticks(list(measured))
    for index, name in enumerate(dict.fromkeys(each.recipe for each in estimates)):
        chosen = [each for each in estimates if each.recipe == name]
        gpus = [each.gpus for each in chosen]
        right.plot(gpus, [each.step for each in chosen], "o-", color=COLOURS[index % 5], label=name)
        ideal = [chosen[0].step * gpus[0] / count for count in gpus]
        right.plot(gpus, ideal, ":", color=COLOURS[index % 5], lw=1)
    right.set(
        xscale="log", yscale="log", xlabel="H100s", ylabel="s per step", title="estimated (dotted: in proportion)"
    )
    counts = sorted({each.gpus for each in estimates})
    right.set_xticks(counts, [str(count) for count in counts])
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__, "scaling", quick="tiny networks, two processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="1 first: the base of ratios")
    parser.add_argument("--recipes", nargs="+", default=[recipe.name for recipe in RECIPES], help="of the estimates")
    arguments: argparse.Namespace = parser.parse_args(argv)
    sizes, recipes, gpus = Sizes(), [recipe for recipe in RECIPES if recipe.name in arguments.recipes], GPUS
    if arguments.quick:
        sizes, recipes, gpus, arguments.processes = QUICK_SIZES, list(QUICK), QUICK_GPUS, [1, 2]
    machine = Machine()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_processes(arguments.processes, sizes, Path(folder))
    print_measured(measured, len(_cores()))
    check_counted(measured)
    print_work(recipes)
    print_traffic(recipes, gpus[1], machine)
    largest = next((recipe for recipe in recipes if recipe.generator == "L/2"), recipes[0])
    fitting = fits(largest, gpus[0], machine)
    print_fits(largest, gpus[0], machine, fitting)
    estimates = [found for r in recipes for count in gpus if (found := best(r, count, machine, KEPT))]
    print_estimates(estimates, recipes, machine)
    traffic = {r.name: recipe_traffic(r, gpus[1], machine) for r in recipes}
    figures = {
        "cores": len(_cores()),
        "sizes": asdict(sizes),
        "measured": measured,
        "work": {recipe.name: asdict(work(recipe)) for recipe in recipes},
        "traffic": {n: {m: [e._asdict() for e in es] for m, es in modes.items()} for n, modes in traffic.items()},
        "fits": {"recipe": largest.name, "gpus": gpus[0], "bytes": fitting},
        "estimated": {
            "assumptions": asdict(machine),
            "steps": [asdict(each) | {"step": each.step} for each in estimates],
        },
    }
    draw_picture(measured, estimates, save("scaling", figures, arguments.root))


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
