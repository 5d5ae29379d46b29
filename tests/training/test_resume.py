"""A killed training command, run again, ends where an undisturbed one ends: bit for bit, log included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_train import TinyConfig, main

from drifting.training.checkpoint_file import checkpoint_paths, read_checkpoint
from drifting.training.config import CheckpointConfig, LogConfig, RunConfig
from drifting.training.metrics_log import read_metrics

FOLDER = Path(__file__).parent
STEPS = 40
OVERRIDES = [f"run.steps={STEPS}", "run.device=cpu", "checkpoint.every=10", "checkpoint.keep=2", "log.every=5"]


def train_here(root):
    """The same loop in this process, without Hydra."""
    main.__wrapped__(
        TinyConfig(
            run=RunConfig(name="tiny", steps=STEPS, root=str(root), device="cpu"),
            checkpoint=CheckpointConfig(every=10, keep=2),
            log=LogConfig(every=5),
        )
    )
    return root / "tiny"


def start(*arguments, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    threads = torch.get_num_threads()
    yield train_here(tmp_path_factory.mktemp("undisturbed"))
    torch.set_num_threads(threads)


def assert_equal_runs(run_dir, undisturbed):
    assert [path.name for path in checkpoint_paths(run_dir)] == [path.name for path in checkpoint_paths(undisturbed)]
    for ours, theirs in zip(checkpoint_paths(run_dir), checkpoint_paths(undisturbed), strict=True):
        torch.testing.assert_close(read_checkpoint(ours).entries, read_checkpoint(theirs).entries, rtol=0, atol=0)
    assert figures(run_dir) == figures(undisturbed)


def figures(run_dir):
    return read_metrics(run_dir, timings=False)


def test_run_killed_between_checkpoints(tmp_path, undisturbed):
    # Killed while asleep in one of the steps after the second checkpoint; `pause` is the configuration's, so it stays.
    command = [str(FOLDER / "tiny_train.py"), *OVERRIDES, "pause=0.02"]
    run_dir = tmp_path / "runs" / "tiny"
    process = start(*command, cwd=tmp_path)
    while not any(line["step"] >= 25 for line in read_metrics(run_dir)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_checkpoint(checkpoint_paths(run_dir)[-1]).step == 20
    again = start(*command, cwd=tmp_path)
    _, printed = again.communicate(timeout=60)
    assert again.returncode == 0, printed
    assert_equal_runs(run_dir, undisturbed)


KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys
from tiny_train import main
replace = pathlib.Path.replace
def killed(source, target):
    if target.name == "step_00000020.pt":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
pathlib.Path.replace = killed
from test_resume import train_here
train_here(pathlib.Path(sys.argv[1]))
"""


def test_run_killed_in_the_middle_of_a_save(tmp_path, undisturbed):
    process = start("-c", KILLED_WHILE_SAVING, str(tmp_path), cwd=tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    saved = sorted(path.name for path in (tmp_path / "tiny" / "checkpoints").iterdir())
    assert saved == [".step_00000020.pt.tmp", "step_00000010.pt"]
    run_dir = train_here(tmp_path)
    assert_equal_runs(run_dir, undisturbed)
    assert len(list((run_dir / "checkpoints").iterdir())) == 2  # the temporary file is gone
