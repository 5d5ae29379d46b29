"""How do time and memory of the drifting loss grow with its sizes? Forward and backward, on one core.

    python -m benchmarks.growth            all sizes, a few minutes
    python -m benchmarks.growth --quick    small sizes, seconds

One size runs, the others stay at the base. Exponents e of cost ~ size^e are fitted over the upper half of the sizes,
where fixed costs have faded. Memory is the peak of what torch has allocated beyond the inputs, which is exact for small
sizes too; that a process grows by as much shows in the table of benchmarks.drift_loss.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib

from benchmarks.bar_chart import COLOURS
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.machine import use_one_core
from benchmarks.measure import interleave, rounds_within, with_core_share
from benchmarks.memory import peak_allocated
from benchmarks.options import add_core, add_rounds, options
from benchmarks.problem import Shape, draw
from benchmarks.report import print_table, save

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = Shape(B=16, G=64, P=64, N=16, D=256)
SIZES = {
    "G": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "P": (32, 64, 128, 256, 512, 1024, 2048, 4096),
    "D": (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "B": (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
}
QUICK_BASE = Shape(B=4, G=8, P=8, N=2, D=32)
QUICK_SIZES = {"G": (8, 16, 32), "P": (8, 16, 32), "D": (32, 64, 128), "B": (4, 8, 16)}
MEANING = {"G": "generated samples", "P": "positives", "D": "feature width", "B": "problems"}
COMPARED = ("ours", "transcription")


def upper_half(values: Sequence[float]) -> Sequence[float]:
    """The last half of the values, the middle one included."""
    return values[len(values) // 2 :]


def fitted_power(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """(exponent e, factor c) of cost = c size^e, by least squares of the logarithms over the sizes' upper half."""
    x = [math.log(size) for size in upper_half(sizes)]
    y = [math.log(cost) for cost in upper_half(costs)]
    exponent, intercept = statistics.linear_regression(x, y)
    return exponent, math.exp(intercept)


def measure_axis(axis: str, sizes: Sequence[int], base: Shape, seed: int, least_rounds: int, seconds: float) -> dict:
    """Times of every round and peak bytes for each size on one axis, as JSON can hold them."""
    points = []
    for size in sizes:
        problem = draw(base._replace(**{axis: size}), seed)
        calls = {name: IMPLEMENTATIONS[name](problem).run for name in COMPARED}
        for call in calls.values():
            call()
        rounds = rounds_within(seconds, calls, least=least_rounds)
        times, core_share = with_core_share(partial(interleave, calls, rounds))
        peaks = {name: peak_allocated(call) for name, call in calls.items()}
        points.append({"size": size, "seconds": times, "core_share": core_share, "peak_bytes": peaks})
    exponents = {}
    for name in COMPARED:
        medians = [statistics.median(point["seconds"][name]) for point in points]
        peaks = [point["peak_bytes"][name] for point in points]
        exponents[name] = {"time": fitted_power(sizes, medians), "memory": fitted_power(sizes, peaks)}
    return {"points": points, "exponent_and_factor": exponents}


def print_axis(axis: str, base: Shape, result: dict) -> None:
    others = ", ".join(f"{name} = {size}" for name, size in base._asdict().items() if name != axis)
    least_share = min(point["core_share"] for point in result["points"])
    print(f"\n{axis} ({MEANING[axis]}), with {others}; at least {least_share:.0%} of the core")
    rows = []
    for point in result["points"]:
        medians = [1e3 * statistics.median(point["seconds"][name]) for name in COMPARED]
        peaks = [point["peak_bytes"][name] / 2**20 for name in COMPARED]
        rows.append([str(point["size"]), *(f"{value:.2f}" for value in (*medians, *peaks))])
    exponents = [result["exponent_and_factor"][name][cost][0] for cost in ("time", "memory") for name in COMPARED]
    rows.append(["exponent", *(f"{exponent:.2f}" for exponent in exponents)])
    print_table([axis, *(f"{name} {unit}" for unit in ("ms", "MiB") for name in COMPARED)], rows)


def draw_picture(results: dict[str, dict], base: Shape, path: Path) -> None:
    figure, axes = plt.subplots(2, len(results), figsize=(4 * len(results), 7), layout="constrained", squeeze=False)
    for column, (axis, result) in enumerate(results.items()):
        sizes = [point["size"] for point in result["points"]]
        for name in COMPARED:
            medians = [1e3 * statistics.median(point["seconds"][name]) for point in result["points"]]
            peaks = [point["peak_bytes"][name] / 2**20 for point in result["points"]]
            fits = result["exponent_and_factor"][name]
            draw_curve(axes[0, column], name, sizes, medians, *fits["time"], unit=1e3)
            draw_curve(axes[1, column], name, sizes, peaks, *fits["memory"], unit=2**-20)
        for row, label in enumerate(("median time (ms)", "peak extra memory (MiB)")):
            axes[row, column].set(xscale="log", yscale="log", xlabel=f"{axis}: {MEANING[axis]}", ylabel=label)
            axes[row, column].set_xscale("log", base=2)
            axes[row, column].grid(alpha=0.3)
            axes[row, column].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Drifting loss, forward and backward, one core; the sizes not varied: {base}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_curve(
    axis: plt.Axes, name: str, sizes: Sequence[int], costs: Sequence[float], exponent: float, factor: float, unit: float
) -> None:
    """Measured costs, and the fitted power over the sizes that it was fitted to."""
    colour = COLOURS[COMPARED.index(name)]
    axis.plot(sizes, costs, "o-", color=colour, lw=1.2, ms=4, label=f"{name} ~ size^{exponent:.2f}")
    fitted = upper_half(sizes)
    axis.plot(fitted, [unit * factor * size**exponent for size in fitted], ":", color="#333333", lw=1.5)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__, "growth", quick="small sizes")
    add_core(parser)
    add_rounds(parser, least=5, seconds=3.0, of="a size")
    arguments = parser.parse_args(argv)
    base, axes = (QUICK_BASE, QUICK_SIZES) if arguments.quick else (BASE, SIZES)
    seconds = 0.02 if arguments.quick else arguments.seconds

    cpu = use_one_core(arguments.cpu)
    print(f"drifting loss, forward + backward, core {cpu}, one thread, float32, seed {arguments.seed}")
    results = {}
    for axis, sizes in axes.items():
        results[axis] = measure_axis(axis, sizes, base, arguments.seed, arguments.rounds, seconds)
        print_axis(axis, base, results[axis])
    figures = {"core": cpu, "seed": arguments.seed, "base": base._asdict(), "axes": results}
    draw_picture(results, base, save("growth", figures, arguments.root))


if __name__ == "__main__":
    main()
