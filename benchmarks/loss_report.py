"""How the benchmarks of the loss try their candidates, on a CPU and on a GPU, and show what they found.

A result has "shape", "gen_bytes", "seconds" {candidate: of each round}, "gradient_error" {candidate: error}, "failed"
{candidate: why} and "peak_bytes" {candidate: {kind of memory: bytes}}.
"""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from benchmarks.bar_chart import save_bars
from benchmarks.implementations import Evaluation
from benchmarks.measure import ratios
from benchmarks.problem import Problem, Shape
from benchmarks.report import print_table

Implementations = Mapping[str, Callable[[Problem], Evaluation]]


def prepare_all(problem: Problem, implementations: Implementations) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Every candidate after one run, and why the others cannot run."""
    ready, failed = {}, {}
    for name, prepare in implementations.items():
        try:
            evaluation = prepare(problem)
            evaluation.run()
            ready[name] = evaluation
        except Exception as error:
            if name == "ours":
                raise
            failed[name] = f"{type(error).__name__}: {error}"
    return ready, failed


def gradient_error(evaluation: Evaluation, exact: Tensor) -> float:
    """max |gradient - exact gradient| / max |exact gradient|; the latter in float64, on the CPU."""
    difference = evaluation.gradient(evaluation.run()).cpu() - exact
    return float(difference.abs().max() / exact.abs().max())


def print_shape(result: dict, said: str, peaks: Mapping[str, str]) -> None:
    """One shape's table; `said` of its circumstances, `peaks` {kind of memory: column}."""
    shape, rounds = Shape(**result["shape"]), len(result["seconds"]["ours"])
    print(f"\n{shape}, generated samples {shape.gen_bytes / 2**20:.2f} MiB, {rounds} rounds, {said}")
    rows = []
    for name, ratio in ratios(result["seconds"], "ours").items():
        times = [1e3 * second for second in result["seconds"][name]]
        own = result["peak_bytes"].get(name, {})
        memory = [f"{own[kind] / shape.gen_bytes:.2f}" if kind in own else "-" for kind in peaks]
        cells = [f"{min(times):.3f}", f"{statistics.median(times):.3f}", f"{ratio:.2f}"]
        rows.append([name, *cells, f"{result['gradient_error'][name]:.1e}", *memory])
    print_table(["", "min ms", "median ms", "time / ours", "error", *peaks.values()], rows)


def print_failed(result: dict) -> None:
    for name, reason in result["failed"].items():
        print(f"{name} not measured: {reason}")


def draw_picture(results: list[dict], order: Mapping[str, object], peak: str, path: Path, *, title: str) -> None:
    """Times over ours and memory of one kind, `peak`; candidates in the order of `order`."""
    groups = [str(Shape(**result["shape"])).replace(" D", "\nD") for result in results]
    names = [name for name in order if any(name in result["seconds"] for result in results)]
    quartiles = [ratios(result["seconds"], "ours") for result in results]

    def sizes(result: dict, name: str) -> float | None:
        own = result["peak_bytes"].get(name)
        return None if own is None else own[peak] / result["gen_bytes"]

    panels = {
        "time over ours (median of rounds, bars: quartiles)": {
            name: [group.get(name) for group in quartiles] for name in names
        },
        "peak extra memory (sizes of the generated samples)": {
            name: [sizes(result, name) for result in results] for name in names
        },
    }
    save_bars(path, groups, panels, title=title)
