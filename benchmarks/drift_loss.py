"""How fast is the drifting loss, how much memory does it take, and is it right? Forward and backward, on one core.

    python -m benchmarks.drift_loss                                   in the environment of `make bench`
    python -m benchmarks.drift_loss --shapes 64,64,64,16,256 --cpu 0
    DRIFTING_NATIVE=0 python -m benchmarks.drift_loss --root runs/plain    ours without its C kernels

Time: every candidate in every round; minimum and median over rounds, and the median [quartiles] over rounds of a
candidate's time over ours. Believe none of them if "of the core" is far below 100 %: others used it meanwhile.
Error: largest difference of the gradient to the float64 one, over the largest gradient.
Memory: peak beyond what the process held before, in sizes of the generated samples, see memory.py.
"""

import sys
from functools import partial
from importlib.util import find_spec

import torch

from benchmarks.implementations import IMPLEMENTATIONS, reference_gradient
from benchmarks.loss_report import draw_picture, gradient_error, prepare_all, print_failed, print_shape
from benchmarks.machine import use_one_core
from benchmarks.measure import interleave, rounds_within, with_core_share
from benchmarks.memory import in_fresh_process
from benchmarks.options import add_core, add_rounds, options
from benchmarks.problem import Problem, Shape, draw
from benchmarks.report import save

SHAPES = (
    Shape(64, 64, 64, 16, 256),  # pooled statistics of a feature map, 64 labels
    Shape(64, 64, 64, 16, 1024),  # the same of a wider map
    Shape(16, 64, 64, 16, 5120),  # whole samples: the loss without an encoder
    Shape(1024, 64, 64, 16, 64),  # every location of a map
    Shape(256, 8, 1, 0, 112),  # action sequences, one demonstration per observation
)
QUICK_SHAPES = (Shape(4, 8, 8, 2, 32), Shape(16, 4, 1, 0, 16))
PEAKS = {"resident": "resident / gen", "allocated": "allocated / gen"}
NOTE = """\
drift-models weighs extra negatives inside the softmax, the official objective after it; "at weight 1" the two agree."""


def errors(problem: Problem, names: list[str]) -> dict[str, float]:
    """Of the gradient of each candidate, against float64."""
    exact = reference_gradient(problem)
    return {name: gradient_error(IMPLEMENTATIONS[name](problem), exact) for name in names}


def measure_shape(shape: Shape, seed: int, least_rounds: int, seconds: float) -> dict:
    """Everything about one shape, as JSON can hold it."""
    problem = draw(shape, seed)
    evaluations, failed = prepare_all(problem, IMPLEMENTATIONS)
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
        print_shape(results[-1], f"{results[-1]['core_share']:.0%} of the core", PEAKS)
        for name, error in results[-1]["gradient_error_at_weight_1"].items():
            print(f"{name} at weight 1: error {error:.1e}")
        print_failed(results[-1])
    figures = {"core": cpu, "seed": arguments.seed, "notes": NOTE, "shapes": results}
    path = save("drift_loss", figures, arguments.root)
    draw_picture(results, IMPLEMENTATIONS, "resident", path, title="Drifting loss, forward and backward, one core")


if __name__ == "__main__":
    main()
