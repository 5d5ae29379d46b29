"""How fast is the drifting loss on a GPU, how much memory does it take, and is it right? Forward and backward.

    python -m benchmarks.drift_loss_gpu                             on a machine with a CUDA device; JAX if it is there
    python -m benchmarks.drift_loss_gpu --shapes 64,64,64,16,256

Against the official formula in PyTorch, plain and compiled, and in JAX; all with products in full float32. Every
candidate in every round, each waited for; minimum and median over rounds, and the median [quartiles] over rounds of a
candidate's time over ours. Floor: the time that one read of every sample and one write of the gradient take at the
bandwidth of a copy, measured here. Error: largest difference of the gradient to the float64 one, over the largest
gradient. Memory: peak beyond what was held before, in sizes of the generated samples; JAX's is its own plan.
"""

import argparse
import os
import sys

import torch

from benchmarks.drift_loss import QUICK_SHAPES
from benchmarks.implementations import ON_GPU, Evaluation, reference_gradient
from benchmarks.loss_report import draw_picture, gradient_error, prepare_all, print_failed, print_shape
from benchmarks.measure import Call, interleave, rounds_within
from benchmarks.options import add_rounds, options
from benchmarks.problem import Problem, Shape, draw
from benchmarks.report import save

SHAPES = (
    Shape(64, 64, 64, 16, 256),  # pooled statistics of a feature map, 64 labels
    Shape(64, 64, 64, 16, 1024),  # the same of a wider map
    Shape(16, 64, 64, 32, 5120),  # whole samples: the loss without an encoder
    Shape(1024, 64, 64, 32, 640),  # every location of an 8 x 8 map of the paper's encoder, 16 labels
    Shape(4096, 64, 64, 32, 64),  # narrow features, many locations
    Shape(256, 8, 1, 0, 112),  # action sequences, one demonstration per observation
)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * source.nbytes / (begin.elapsed_time(end) / 1e3)


def least_seconds(problem: Problem, bandwidth: float) -> float:
    """Every sample read once and the gradient written once."""
    read = sum(block.nbytes for block in problem[:3] if block is not None)
    return (read + problem.gen.nbytes) / bandwidth


def waited_for(evaluation: Evaluation) -> Call:
    def call() -> None:
        evaluation.run()
        torch.cuda.synchronize()

    return call


def peak_bytes(evaluation: Evaluation) -> int:
    """Largest sum of torch's allocations while it runs, beyond those before; of JAX its plan, of a graph its pool."""
    if evaluation.planned_bytes is not None:
        return evaluation.planned_bytes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    evaluation.run()
    return torch.cuda.max_memory_allocated() - before


def measure_shape(shape: Shape, arguments: argparse.Namespace, bandwidth: float) -> dict:
    """Everything about one shape, as JSON can hold it."""
    problem = draw(shape, arguments.seed).to("cuda")
    exact = reference_gradient(problem).cpu()
    evaluations, failed = prepare_all(problem, {name: ON_GPU[name] for name in arguments.candidates})
    calls = {name: waited_for(evaluation) for name, evaluation in evaluations.items()}
    rounds = rounds_within(arguments.seconds, calls, least=arguments.rounds)
    return {
        "shape": shape._asdict(),
        "gen_bytes": shape.gen_bytes,
        "least_seconds": least_seconds(problem, bandwidth),
        "seconds": interleave(calls, rounds),
        "gradient_error": {name: gradient_error(evaluation, exact) for name, evaluation in evaluations.items()},
        "peak_bytes": {name: {"allocated": peak_bytes(evaluation)} for name, evaluation in evaluations.items()},
        "failed": failed,
    }


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "drift_loss_gpu", quick="two tiny shapes")
    add_rounds(parser, least=9, seconds=3.0, of="a shape")
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", help="B,G,P,N,D each; default: six that occur")
    parser.add_argument("--candidates", nargs="+", choices=list(ON_GPU), default=list(ON_GPU), help="ours among them")
    arguments = parser.parse_args(argv)
    if "ours" not in arguments.candidates:
        parser.error("--candidates must have ours among them: times are compared with it")
    if arguments.quick:
        arguments.seconds = 0.2
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device; python -m benchmarks.drift_loss measures on a CPU")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of the memory for itself
    shapes = tuple(arguments.shapes or (QUICK_SHAPES if arguments.quick else SHAPES))
    device, bandwidth = torch.cuda.get_device_name(), copy_bandwidth()
    print(f"drifting loss, forward + backward, {device}, a copy {bandwidth / 1e12:.2f} TB/s, seed {arguments.seed}")
    results = []
    for shape in shapes:
        results.append(measure_shape(shape, arguments, bandwidth))
        floor = f"floor {1e3 * results[-1]['least_seconds']:.3f} ms"
        print_shape(results[-1], floor, {"allocated": "memory / gen"})
        print_failed(results[-1])
    figures = {"device": device, "copy_bandwidth": bandwidth, "seed": arguments.seed, "shapes": results}
    path = save("drift_loss_gpu", figures, arguments.root)
    draw_picture(results, ON_GPU, "allocated", path, title=f"Drifting loss, forward and backward, {device}")


if __name__ == "__main__":
    main()
