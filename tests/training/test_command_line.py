"""A training command under Hydra, in a real process: what it prints, where it writes, how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parent / "tiny_train.py"


def run(cwd, *overrides):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(SCRIPT), *overrides]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_experiment_wins_over_the_root_file_and_nothing_else_is_written(tmp_path):
    done = run(tmp_path, "experiment=short", "optim.lr=0.003", "run.device=cpu")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no outputs/, no train.log
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["short"]
    saved = yaml.safe_load((tmp_path / "runs" / "short" / "resolved.yaml").read_text())
    assert (saved["run"]["steps"], saved["optim"]["lr"]) == (3, 0.003)
    assert saved["checkpoint"]["every"] == 10  # of the root file, which the experiment leaves alone
    assert (tmp_path / "runs" / "short" / "checkpoints" / "step_00000003.pt").is_file()
    assert done.stdout == ""
    assert "step 3/3" in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.learning_rate=1", "Key 'learning_rate' not in 'OptimConfig'"),
        ("experiment=shrot", "Could not find 'experiment/shrot'"),
        ("optim.lr=-1", "error: optim.lr must be positive and finite, got -1.0"),
        ("poison_at=2", "error: step 2: the loss is nan"),
    ],
)
def test_mistakes_end_the_command_without_a_traceback(tmp_path, override, said):
    done = run(tmp_path, override, "run.device=cpu")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
