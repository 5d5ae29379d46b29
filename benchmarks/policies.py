"""Drifting against diffusion on the same network, data and steps: success, latency and training time, over seeds.

    python -m benchmarks.policies --tasks lift can --seeds 0 1 2
    python -m benchmarks.policies --tasks push_t -- demos.source=human demos.path=pusht.zip
    python -m benchmarks.policies --tasks lift --quick

Each policy is trained by `python -m domains.robotics.train` and played by `python -m domains.robotics.evaluate`; the
diffusion baseline twice, with 100 steps of DDPM and 16 of DDIM. A run that is there is continued or used again, so that
seeds and tasks can be added: its folder is <root>/policies/<task>_<kind>_<seed>. The score of a run is the mean over
its last checkpoints; the interval is over initial conditions and runs together.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
import numpy as np

from benchmarks.bar_chart import COLOURS
from benchmarks.options import options
from benchmarks.report import print_table, save
from domains.robotics.evaluation import mean_interval
from drifting.training.metrics_log import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SAMPLERS = {
    "drifting": ("drifting", []),
    "diffusion 100": ("diffusion", ["sampler=ddpm", "inference_steps=100"]),
    "diffusion 16": ("diffusion", ["sampler=ddim", "inference_steps=16"]),
}
"""Name in the table: kind of policy, and how it is played."""

QUICK = ["run.steps=20", "checkpoint.every=10", "held_out.every=20", "optim.warmup_steps=2"]


def add_runs(parser: argparse.ArgumentParser) -> None:
    """--seeds, --episodes, --workers and overrides: of runs that are trained and played."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument("overrides", nargs="*", help="further key=value of the training command, after --")


def run(module: str, *arguments: str) -> None:
    """A command of the project in a process of its own; ends this one if it fails."""
    command = [sys.executable, "-m", f"domains.robotics.{module}", *arguments]
    if subprocess.run(command).returncode:
        sys.exit(f"error: {' '.join(command)} failed")


def train(task: str, kind: str, seed: int, root: Path, overrides: Sequence[str]) -> Path:
    """The run directory of a trained policy."""
    name = f"{task}_{kind}_{seed}"
    own = [f"task={task}", f"policy.kind={kind}", f"run.seed={seed}", f"run.name={name}", f"run.root={root}"]
    run("train", *own, "eval.episodes=0", *overrides)
    return root / name


def play(run_dir: Path, name: str, sampling: Sequence[str], playing: dict[str, int]) -> dict[str, Any]:
    """eval_log.json of a run under the settings `playing`; played unless it was before."""
    out = run_dir / f"eval-{name.replace(' ', '-')}-{playing['episodes']}x{playing['checkpoints']}"
    if not (out / "eval_log.json").exists():
        settings = [f"{key}={value}" for key, value in playing.items()]
        run("evaluate", f"run={run_dir}", f"out={out}", *sampling, *settings)
    return json.loads((out / "eval_log.json").read_text())


def summarize(task: str, name: str, seeds: Sequence[int], runs: Sequence[Path], logs: Sequence[dict]) -> dict[str, Any]:
    """One row: runs of several seeds of one task, played one way."""
    scores = [[row["mean_score"] for row in log["checkpoints"]] for log in logs]
    return {
        "task": task,
        "policy": name,
        "demonstrations": logs[0]["demonstrations"],
        "seeds": list(seeds),
        "score": mean(log["test/mean_score"] for log in logs),
        "by_seed": [log["test/mean_score"] for log in logs],
        "by_checkpoint": scores,
        # Over all checkpoints of all runs: the same initial conditions for each.
        "interval": mean_interval(np.array([row for log in logs for row in episode_scores(log)])),
        "success": mean(log["test/success_rate"] for log in logs),
        "stages": [mean(log[key] for log in logs) for key in logs[0] if key.startswith("test/p")],
        "latency_ms": median(log["latency"]["p50_ms"] for log in logs),
        "latency_p99_ms": median(log["latency"]["p99_ms"] for log in logs),
        "training_seconds": [training_seconds(read_metrics(run_dir)) for run_dir in runs],
        "steps": read_metrics(runs[0])[-1]["step"],
        "environment": json.loads((runs[0] / "environment.json").read_text())[-1],
    }


def episode_scores(log: dict[str, Any]) -> list[list[float]]:
    """Of each checkpoint and initial condition; of the last checkpoint alone in logs that have no others."""
    if "scores" in log["checkpoints"][0]:
        return [row["scores"] for row in log["checkpoints"]]
    return [[value for key, value in log.items() if key.startswith("test/sim_max_reward")]]


def training_seconds(metrics: Sequence[dict[str, Any]]) -> float:
    """Of a run until its last line, without what it took to judge the policy on held-out windows."""
    steps = np.diff([0, *(line["step"] for line in metrics)])
    judged = sum(num * line.get("time/held out", 0.0) for num, line in zip(steps, metrics, strict=True))
    return float(metrics[-1]["seconds"] - judged)


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table of all tasks; latencies as multiples of the drifting policy's where it was played."""
    header = [
        "task, demonstrations",
        "policy",
        "score",
        "by seed",
        "95 %",
        "success",
        "latency ms",
        "times",
        "training s",
    ]
    cells = []
    fast = {row["task"]: row["latency_ms"] for row in rows if row["policy"] == "drifting"}
    for row in rows:
        low, high = row["interval"]
        cells.append(
            [
                f"{row['task']}, {row['demonstrations']}",
                row["policy"],
                f"{row['score']:.3f}",
                " ".join(f"{score:.2f}" for score in row["by_seed"]),
                f"{low:.2f} to {high:.2f}",
                f"{row['success']:.3f}",
                f"{row['latency_ms']:.2f}",
                f"{row['latency_ms'] / fast[row['task']]:.0f}" if row["task"] in fast else "",
                f"{mean(row['training_seconds']):.0f}",
            ]
        )
    print_table(header, cells)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Score of each task and policy, one dot per seed, and the latency under it."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(1 + 2.6 * len(tasks), 3.4), layout="constrained", squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        own = [row for row in rows if row["task"] == task]
        names = [f"{row['policy']}\n{row['latency_ms']:.3g} ms" for row in own]
        axis.bar(names, [row["score"] for row in own], color=COLOURS[: len(own)], width=0.6)
        for place, row in enumerate(own):
            axis.plot([place] * len(row["by_seed"]), row["by_seed"], "k.", markersize=5)
        axis.set_ylim(0, 1.05)
        axis.set_title(f"{task} ({own[0]['demonstrations']} demonstrations)", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean score")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = options(__doc__, "policies", quick="20 steps, two episodes")
    parser.add_argument("--tasks", nargs="+", default=["lift"])
    parser.add_argument("--policies", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--checkpoints", type=int, default=10, help="the last so many, whose mean is the score")
    add_runs(parser)
    arguments = parser.parse_args()
    playing = {"episodes": arguments.episodes, "checkpoints": arguments.checkpoints, "workers": arguments.workers}
    playing["videos"] = 0
    overrides = list(arguments.overrides)
    if arguments.quick:
        playing |= {"episodes": 2, "checkpoints": 1}
        overrides += QUICK

    rows = []
    for task in arguments.tasks:
        for name in arguments.policies:
            kind, sampling = SAMPLERS[name]
            runs = [train(task, kind, seed, arguments.root / "policies", overrides) for seed in arguments.seeds]
            logs = [play(run_dir, name, sampling, playing) for run_dir in runs]
            rows.append(summarize(task, name, arguments.seeds, runs, logs))
    draw(rows, save("policies", {"rows": rows, "playing": playing, "overrides": overrides}, arguments.root))
    print()
    print_rows(rows)


if __name__ == "__main__":
    main()
