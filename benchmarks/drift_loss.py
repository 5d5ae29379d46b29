"""How fast is the drifting loss, how much memory does it take, and is it right? Forward and backward, on one core.

    python -m benchmarks.drift_loss                                   in the environment of `make bench`
    python -m benchmarks.drift_loss --shapes 64,64,64,16,256 --cpu 0
    DRIFTING_NATIVE=0 python -m benchmarks.drift_loss --root runs/plain    ours without its C kernels

Time: every candidate in every round; minimum and median over rounds, and the median [quartiles] over rounds of a
candidate's time over ours. Believe none of them if "of the core" is far below 100 %: others used it meanwhile.
Error: largest difference of the gradient to the float64 one, over the largest gradient.
Memory: peak beyond what the process held before, in sizes of the generated samples, see memory.py.
"""

import statistics
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.bar_chart import save_bars
from benchmarks.implementations import IMPLEMENTATIONS, Evaluation, reference_gradient
from benchmarks.machine import use_one_core
from benchmarks.measure import interleave, ratios, rounds_within, with_core_share
from benchmarks.memory import in_fresh_process
from benchmarks.options import add_core, add_rounds, options
from benchmarks.problem import Problem, Shape, draw
from benchmarks.report import print_table, save

SHAPES = (
    Shape(64, 64, 64, 16, 256),  # pooled statistics of a feature map, 64 labels
    Shape(64, 64, 64, 16, 1024),  # the same of a wider map
    Shape(16, 64, 64, 16, 5120),  # whole samples: the loss without an encoder
    Shape(1024, 64, 64, 16, 64),  # every location of a map
    Shape(256, 8, 1, 0, 112),  # action sequences, one demonstration per observation
)
QUICK_SHAPES = (Shape(4, 8, 8, 2, 32), Shape(16, 4, 1, 0, 16))
NOTE = """\
drift-models weighs extra negatives inside the softmax, the official objective after it; "at weight 1" the two agree."""


def prepare_all(problem: Problem) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Every candidate after one run, and why the others cannot run."""
    ready, failed = {}, {}
    for name, prepare in IMPLEMENTATIONS.items():
        try:
            evaluation = prepare(problem)
            evaluation.run()
            ready[name] = evaluation
        except Exception as error:
            if name == "ours":
                raise
            failed[name] = f"{type(error).__name__}: {error}"
    return ready, failed


def errors(problem: Problem, names: list[str]) -> dict[str, float]:
    """max |gradient - float64 gradient| / max |float64 gradient| of each candidate."""
    exact = reference_gradient(problem)
    found = {}
    for name in names:
        evaluation = IMPLEMENTATIONS[name](problem)
        difference = evaluation.gradient(evaluation.run()) - exact
        found[name] = float(difference.abs().max() / exact.abs().max())
    return found


def measure_shape(shape: Shape, seed: int, least_rounds: int, seconds: float) -> dict:
    """Everything about one shape, as JSON can hold it."""
    problem = draw(shape, seed)
    evaluations, failed = prepare_all(problem)
    calls = {name: evaluation.run for name, evaluation in evaluations.items()}
    rounds = rounds_within(seconds, calls, least=least_rounds)
    times, core_share = with_core_share(partial(interleave, calls, rounds))
    names = list(calls)
    error = errors(problem, names)
    error_at_weight_1 = {}
    if problem.neg_weight is not None and "drift-models" in names:
        at_one = problem._replace(neg_weight=torch.ones_like(problem.neg_weight))
        error_at_weight_1 = errors(at_one, ["drift-models"])
    del evaluations, calls, problem  # before other processes need the memory
    memory = {}
    for name in names:
        try:
            memory[name] = in_fresh_process(name, shape)
        except RuntimeError as reason:
            failed[name] = f"memory: {reason}"
    return {
        "shape": shape._asdict(),
        "gen_bytes": shape.gen_bytes,
        "seconds": times,
        "core_share": core_share,
        "gradient_error": error,
        "gradient_error_at_weight_1": error_at_weight_1,
        "peak_bytes": memory,
        "failed": failed,
    }


def print_shape(result: dict) -> None:
    shape = Shape(**result["shape"])
    rounds = len(result["seconds"]["ours"])
    print(
        f"\n{shape}, generated samples {shape.gen_bytes / 2**20:.2f} MiB, {rounds} rounds, "
        f"{result['core_share']:.0%} of the core"
    )
    rows = []
    for name, ratio in ratios(result["seconds"], "ours").items():
        times = [1e3 * second for second in result["seconds"][name]]
        peaks = [f"{peak / shape.gen_bytes:.2f}" for peak in result["peak_bytes"].get(name, {}).values()]
        error = f"{result['gradient_error'][name]:.1e}"
        rows.append([name, f"{min(times):.2f}", f"{statistics.median(times):.2f}", f"{ratio:.2f}", error, *peaks])
        rows[-1] += ["-"] * (7 - len(rows[-1]))
    header = ["", "min ms", "median ms", "time / ours", "error", "resident / gen", "allocated / gen"]
    print_table(header, rows)
    for name, error in result["gradient_error_at_weight_1"].items():
        print(f"{name} at weight 1: error {error:.1e}")
    for name, reason in result["failed"].items():
        print(f"{name} not measured: {reason}")


def draw_picture(results: list[dict], path: Path) -> None:
    groups = [str(Shape(**result["shape"])).replace(" D", "\nD") for result in results]
    names = [name for name in IMPLEMENTATIONS if any(name in result["seconds"] for result in results)]
    quartiles = [ratios(result["seconds"], "ours") for result in results]
    save_bars(
        path,
        groups,
        {
            "time over ours (median of rounds, bars: quartiles)": {
                name: [group.get(name) for group in quartiles] for name in names
            },
            "peak extra memory (sizes of the generated samples)": {
                name: [
                    result["peak_bytes"][name]["resident"] / result["gen_bytes"]
                    if name in result["peak_bytes"]
                    else None
                    for result in results
                ]
                for name in names
            },
        },
        title="Drifting loss, forward and backward, one core",
    )


def main() -> None:
    parser = options(__doc__, "drift_loss", quick="two tiny shapes")
    add_core(parser)
    add_rounds(parser, least=9, seconds=15.0, of="a shape")
    parser.add_argument(
        "--shapes", type=Shape.parse, nargs="+", help="B,G,P,N,D each; default: five that occur in practice"
    )
    arguments = parser.parse_args()
    if missing := [module for module in ("jax", "drifting_models") if find_spec(module) is None]:
        sys.exit(f"error: {missing} not installed; run this by `make bench`, or in its environment .venv-peers")
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    if arguments.shapes:
        shapes = tuple(arguments.shapes)

    cpu = use_one_core(arguments.cpu)
    print(f"drifting loss, forward + backward, core {cpu}, one thread, float32, seed {arguments.seed}\n{NOTE}")
    results = []
    for shape in shapes:
        seconds = 1.0 if arguments.quick else arguments.seconds
        results.append(measure_shape(shape, arguments.seed, arguments.rounds, seconds))
        print_shape(results[-1])
    figures = {"core": cpu, "seed": arguments.seed, "notes": NOTE, "shapes": results}
    draw_picture(results, save("drift_loss", figures, arguments.root))


if __name__ == "__main__":
    main()
