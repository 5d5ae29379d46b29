"""Does a policy get worse with longer training? One task, several seeds: success and held-out figures along the run.

    python -m benchmarks.learning_curve --task lift --seeds 0 1 2 --steps 12000
    python -m benchmarks.learning_curve --task lift --quick

Trains as `benchmarks.policies` does, keeps a checkpoint at each of `--points`, and plays them all. Beside the score
stand the energy score of held-out windows (lower is better) and their spread-skill ratio (1 is calibrated, less is
over-confident): what one would watch where there is no simulator. A run that is there is continued or used again.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

from benchmarks.bar_chart import COLOURS
from benchmarks.options import options
from benchmarks.policies import QUICK, add_runs, play, train
from benchmarks.report import print_table, save
from drifting.training.metrics_log import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEASURES = {"score": "mean score", "es": "held-out energy score", "ssr": "held-out spread-skill ratio"}


def points_of(log: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Step, score and held-out figures of every checkpoint that was played."""
    held_out = {line["step"]: line for line in metrics if "held_out/es" in line}
    rows = []
    for played in log["checkpoints"]:
        line = held_out[played["step"]]
        rows.append({"step": played["step"], "score": played["mean_score"]})
        rows[-1] |= {name: line[f"held_out/{name}"] for name in ("es", "ssr")}
    return rows


def print_curves(curves: Sequence[Sequence[dict[str, float]]]) -> None:
    """A row per checkpoint: mean and standard deviation over seeds, and the score of each."""
    rows = []
    for points in zip(*curves, strict=True):
        values = {name: [point[name] for point in points] for name in MEASURES}
        cells = [f"{mean(each):.3f} +- {stdev(each) if len(each) > 1 else 0:.3f}" for each in values.values()]
        rows.append([f"{points[0]['step']:.0f}", *cells, " ".join(f"{score:.2f}" for score in values["score"])])
    print_table(["step", *MEASURES.values(), "score by seed"], rows)


def draw(curves: Sequence[Sequence[dict[str, float]]], seeds: Sequence[int], title: str, path: Path) -> None:
    """One panel per measure, one line per seed and their mean."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 3.2), layout="constrained")
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        steps = [point["step"] for point in curves[0]]
        for seed, points, colour in zip(seeds, curves, COLOURS * len(curves), strict=False):
            axis.plot(steps, [point[name] for point in points], ".-", color=colour, lw=0.8, label=f"seed {seed}")
        middle = [mean(point[name] for point in points) for points in zip(*curves, strict=True)]
        axis.plot(steps, middle, color="black", lw=2, label="mean")
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1.05)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = options(__doc__, "learning_curve", quick="20 steps, two episodes")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--kind", default="drifting", choices=["drifting", "diffusion"])
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--points", type=int, default=10, help="checkpoints along the run; divides --steps")
    add_runs(parser)
    arguments = parser.parse_args()
    steps, points, episodes = arguments.steps, arguments.points, arguments.episodes
    seeds, overrides = arguments.seeds, list(arguments.overrides)
    if arguments.quick:
        steps, points, episodes, seeds = 20, 2, 2, seeds[:1]
        overrides += QUICK
    if points < 1 or steps % points:
        parser.error(f"--points must divide --steps = {steps}, got {points}")
    every = steps // points
    overrides += [f"run.steps={steps}", f"checkpoint.every={every}", f"checkpoint.keep={points}"]
    overrides.append(f"held_out.every={every}")
    playing = {"episodes": episodes, "checkpoints": points, "workers": arguments.workers, "videos": 0}

    curves = []
    for seed in seeds:
        run_dir = train(arguments.task, arguments.kind, seed, arguments.root / "learning_curve", overrides)
        log = play(run_dir, arguments.kind, [], playing)
        curves.append(points_of(log, read_metrics(run_dir)))
    print()
    print_curves(curves)
    figures = {"task": arguments.task, "kind": arguments.kind, "seeds": seeds, "curves": curves, "playing": playing}
    title = f"{arguments.task}, {log['demonstrations']} demonstrations, {episodes} episodes a point"
    draw(curves, seeds, title, save("learning_curve", figures | {"overrides": overrides}, arguments.root))


if __name__ == "__main__":
    main()
