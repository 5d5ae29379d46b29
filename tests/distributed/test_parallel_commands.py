"""The command under torchrun: the run of one process, with one log and one line of each kind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from domains.imagenet import train
from domains.imagenet.config import ImagenetConfig
from drifting.training.checkpoint import load_entries
from drifting.training.config import ParallelConfig
from drifting.training.ema import Ema
from drifting.training.metrics_log import read_metrics
from drifting.training.run_dir import load_config

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = [
    *("run.steps=4", "run.device=cpu", "run.name=two", "parallel=ddp", "log.every=1", "checkpoint.every=2"),
    *("generator.mlp.hidden=16", "drift.classes_per_step=5", "drift.num_generated=8", "drift.num_positive=8"),
]


def test_two_processes_run_the_command_and_give_the_run_of_one(tmp_path, monkeypatch):
    environment = {name: value for name, value in os.environ.items() if not re.match("RANK|WORLD_SIZE|LOCAL_", name)}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    call += [str(Path(__file__).parent / "quick_train.py"), *OVERRIDES]
    two = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("4 steps to go") == 1
    assert two.stderr.count("step 4/4") == 1

    threads = torch.get_num_threads()
    monkeypatch.setattr(train, "report", lambda *_, **__: {})
    config = load_config(tmp_path / "runs" / "two", ImagenetConfig)
    config.run.name, config.run.root, config.parallel = "one", str(tmp_path / "runs"), ParallelConfig()
    train.main.__wrapped__(config)
    torch.set_num_threads(threads)

    one_run, two_run = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    ours, theirs = read_metrics(two_run, timings=False), read_metrics(one_run, timings=False)
    assert [line["step"] for line in ours] == [1, 2, 3, 4]
    for line, other in zip(ours, theirs, strict=True):
        for name in line:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    averages = []
    for run_dir in (one_run, two_run):
        ema = Ema(config.generator.build(), config.ema.decays)
        assert load_entries(run_dir, ema=ema) == 4
        averages.append(ema.model())
    for one, other in zip(*(average.parameters() for average in averages), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
