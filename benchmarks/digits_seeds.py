"""How good are one-step digits, over seeds? Trains an experiment once per seed by its own command and averages.

python -m benchmarks.digits_seeds --experiment digits --seeds 0 1 2 -- [key=value of the training command ...]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from drifting.training.atomic_file import replace_text


def train(experiment: str, seed: int, root: Path, overrides: list[str]) -> dict:
    """Train one seed in a process of its own; its metrics.json with time, peak memory and environment."""
    run_dir = root / f"{experiment}_seed{seed}"
    if run_dir.exists():
        sys.exit(f"error: {run_dir} exists; a benchmark trains anew. Delete it, or give another --root")
    command = [sys.executable, "-m", "domains.imagenet.train", f"experiment={experiment}", f"run.seed={seed}"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, f"run.name={run_dir.name}", f"run.root={root}", *overrides])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: seed {seed} failed")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return json.loads((run_dir / "metrics.json").read_text()) | {
        "seed": seed,
        "environment": json.loads((run_dir / "environment.json").read_text())[-1],
        "training_seconds": json.loads(lines[-1])["seconds"],
        "command_seconds": time.perf_counter() - began,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("overrides", nargs="*", help="further key=value of the training command, after --")
    arguments = parser.parse_args()

    runs = [train(arguments.experiment, seed, arguments.root, arguments.overrides) for seed in arguments.seeds]
    environment = runs[0]["environment"]
    print(f"\n{arguments.experiment}, seeds {arguments.seeds}, {runs[0]['split']} split, {runs[0]['samples']} samples")
    print(f"commit {environment['commit']}, torch {environment['torch']}, {environment['cpu']}, {os.cpu_count()} cores")
    print("mean +- standard deviation over seeds, then each\n")
    for row, figures in runs[0]["rows"].items():
        print(row)
        for figure in figures:
            values = [run["rows"][row][figure] for run in runs]
            deviation = stdev(values) if len(values) > 1 else 0.0
            print(f"    {figure:<18} {mean(values):7.3f} +- {deviation:.3f}    {[round(value, 3) for value in values]}")
    for figure in ("training_seconds", "command_seconds", "peak_mb", "samples_per_second"):
        print(f"{figure}: {[round(run[figure]) for run in runs]}")
    out = arguments.root / f"{arguments.experiment}.json"
    replace_text(out, json.dumps(runs, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
