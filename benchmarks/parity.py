"""How close are our numbers to those of the authors' code? Every tensor that it returned, group by group.

    python -m benchmarks.parity                      what is committed in tests/golden: all but the auto-encoders
    python -m benchmarks.parity --goldens <folder>   the full golden files; DRIFTING_GOLDENS=<folder> says the same

An error is the largest difference of a tensor over the authors' largest magnitude in it; a row shows the worst of its
group. A tolerance is the loosest of the group; "-" where the authors' values are rounding alone, so that none can be
met. The comparisons are those that the tests assert, tests/imagenet/golden_comparisons.py and golden_train_step.py.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch

from benchmarks.options import options
from benchmarks.report import print_table, save

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS / "imagenet"))
from golden_comparisons import (  # noqa: E402 (its folder is on the path from here on)
    Comparison,
    autoencoder_comparisons,
    generator_comparisons,
    guidance_comparisons,
    queue_comparisons,
)
from golden_networks import Arrays, load_arrays  # noqa: E402
from golden_train_step import train_step_comparisons  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COMMITTED, PREFIX = TESTS / "golden", "official_"


def load(folder: Path, name: str) -> Arrays:
    """Arrays of <folder>/<name>.npz, or of the committed file of that name."""
    path = folder / f"{PREFIX if folder == COMMITTED else ''}{name}.npz"
    if not path.is_file():
        sys.exit(
            f"error: {path} does not exist; --goldens or DRIFTING_GOLDENS must name the folder of the full goldens"
        )
    return load_arrays(path)


def all_comparisons(folder: Path, *, quick: bool) -> Iterator[Comparison]:
    for case in ("latent",) if quick else ("latent", "pixel", "plain", "lnqk"):
        yield from generator_comparisons(load(folder, f"gen_{case}"), case)
    if folder != COMMITTED and not quick:  # the committed auto-encoder is not whole
        for case in ("latent", "pixel"):
            yield from autoencoder_comparisons(load(folder, f"mae_{case}"), case)
    step = load(folder, "train_step")
    yield from train_step_comparisons(step)
    yield from guidance_comparisons(step)
    yield from queue_comparisons(load(folder, "memory_bank"))


def grouped(comparisons: list[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.group, []).append(comparison)
    return groups


def loosest(group: list[Comparison]) -> float | None:
    tolerances = [comparison.tolerance for comparison in group]
    return None if None in tolerances else max(tolerances)


def print_groups(groups: dict[str, list[Comparison]]) -> None:
    rows = []
    for name, group in groups.items():
        worst, tolerance = max(group, key=lambda comparison: comparison.error), loosest(group)
        verdict = "" if all(comparison.holds for comparison in group) else "EXCEEDED"
        bound = "-" if tolerance is None else f"{tolerance:.1e}"
        rows.append([name, str(len(group)), f"{worst.error:.1e}", bound, worst.name, verdict])
    print_table(["", "tensors", "largest error", "tolerance", "of", ""], rows)


def draw_picture(groups: dict[str, list[Comparison]], path: Path, smallest: float = 1e-9) -> None:
    """Errors as dots and tolerances as bars on a logarithmic axis; what is exactly equal lies at its left end."""
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(groups) + 1.2), layout="constrained")
    for row, group in enumerate(groups.values()):
        axis.plot([max(c.error, smallest) for c in group], [row] * len(group), ".", color="#0072b2", alpha=0.5)
        if tolerance := loosest(group):
            axis.vlines(tolerance, row - 0.35, row + 0.35, colors="#e69f00", lw=2)
    axis.set_xscale("log")
    axis.set_yticks(range(len(groups)), groups, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("error of each tensor; bar: tolerance")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "parity", quick="one generator, the training step and the queue")
    default = os.environ.get("DRIFTING_GOLDENS", COMMITTED)
    parser.add_argument("--goldens", type=Path, default=default, help="folder of the full golden files")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    comparisons = list(all_comparisons(arguments.goldens, quick=arguments.quick))
    groups = grouped(comparisons)
    print_groups(groups)
    if arguments.goldens == COMMITTED and not arguments.quick:
        print("\nthe auto-encoders' activations and losses are compared with --goldens only")
    records = [
        {"group": c.group, "name": c.name, "error": c.error, "tolerance": c.tolerance, "holds": c.holds}
        for c in comparisons
    ]
    draw_picture(groups, save("parity", {"comparisons": records}, arguments.root))
    if exceeded := [comparison for comparison in comparisons if not comparison.holds]:
        sys.exit("error: out of tolerance\n" + "\n".join(map(str, exceeded)))


if __name__ == "__main__":
    main()
