"""How good are one-step digits, over seeds? Trains an experiment once per seed by its own command and averages.

python -m benchmarks.digits_seeds --experiment digits --seeds 0 1 2
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev


def train(experiment: str, seed: int, root: Path, overrides: list[str]) -> dict:
    """Train one seed in a process of its own; its metrics.json with training seconds and peak memory."""
    name = f"{experiment}_seed{seed}"
    command = [sys.executable, "-m", "domains.imagenet.train", f"experiment={experiment}", f"run.seed={seed}"]
    began = time.perf_counter()
    subprocess.run([*command, f"run.name={name}", f"run.root={root}", *overrides], check=True)
    lines = (root / name / "metrics.jsonl").read_text().splitlines()
    return json.loads((root / name / "metrics.json").read_text()) | {
        "seed": seed,
        "training_seconds": json.loads(lines[-1])["seconds"],
        "command_seconds": time.perf_counter() - began,
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    state = subprocess.run(command, capture_output=True, text=True, check=True)
    return state.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("overrides", nargs="*", help="further key=value of the training command")
    arguments = parser.parse_args()

    runs = [train(arguments.experiment, seed, arguments.root, arguments.overrides) for seed in arguments.seeds]
    spread = {
        row: {figure: [run["rows"][row][figure] for run in runs] for figure in runs[0]["rows"][row]}
        for row in runs[0]["rows"]
    }
    print(f"\n{arguments.experiment}, commit {commit()}, seeds {arguments.seeds}, {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} cores; mean +- standard deviation over seeds, {runs[0]['split']} split\n")
    for row, figures in spread.items():
        print(row)
        for figure, values in figures.items():
            deviation = stdev(values) if len(values) > 1 else 0.0
            print(f"    {figure:<18} {mean(values):7.3f} +- {deviation:.3f}    {[round(value, 3) for value in values]}")
    for figure in ("training_seconds", "command_seconds", "peak_mb", "samples_per_second"):
        print(f"{figure}: {[round(run[figure]) for run in runs]}")
    out = arguments.root / f"{arguments.experiment}.json"
    out.write_text(json.dumps({"commit": commit(), "runs": runs}, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
