"""From nothing to a robot that lifts: demonstrations, a short training and rollouts by the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("robosuite")

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # a minute and a half of one free core
def test_fifteen_hundred_steps_lift_at_least_five_times_of_ten(tmp_path):
    settings = ["demos.episodes=30", "demos.validation_episodes=2", f"demos.cache={tmp_path / 'cache'}"]
    settings += ["run.steps=1500", "checkpoint.every=1500", "held_out.every=1500", "optim.warmup_steps=100"]
    settings += ["eval.episodes=10", "eval.checkpoints=1"]
    command = [sys.executable, "-m", "domains.robotics.train", "task=lift", "run.device=cpu", *settings]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = json.loads((tmp_path / "runs/lift/eval-drifting-episodes-10-checkpoints-1/eval_log.json").read_text())
    assert log["demonstrations"] == "scripted" and log["episodes"] == 10
    assert log["test/success_rate"] >= 0.5
