"""The trace holds the chosen steps and the timer's regions."""

import json

import torch

from drifting.training.step_profile import profiled_steps
from drifting.training.step_timer import StepTimer


def train(run_dir, steps, **options):
    timer = StepTimer(torch.device("cpu"))
    with profiled_steps(run_dir, **options) as profile:
        for _ in range(steps):
            with timer.region("backward"):
                torch.randn(8, 8).mm(torch.randn(8, 8))
            profile.step()


def test_trace_of_the_active_steps_with_regions(tmp_path, capfd):
    train(tmp_path, 8, enabled=True, wait=1, warmup=1, active=3)
    path = tmp_path / "profile" / "rank0.json"
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("backward") == 3
    assert names.count("aten::mm") == 3
    assert str(path) in capfd.readouterr().err


def test_ranks_have_files_of_their_own_and_rank_0_speaks(tmp_path, capfd):
    train(tmp_path, 4, enabled=True, rank=1, wait=1, warmup=1, active=1)
    assert (tmp_path / "profile" / "rank1.json").stat().st_size > 100
    assert "profile of" not in capfd.readouterr().err


def test_a_run_that_ends_too_soon_says_so(tmp_path, capfd):
    train(tmp_path, 2, enabled=True, wait=5, warmup=1, active=1)
    assert "no profile: the run ended before step 7" in capfd.readouterr().err
    assert not (tmp_path / "profile" / "rank0.json").exists()


def test_off_is_nothing_at_all(tmp_path):
    train(tmp_path, 3, enabled=False)
    assert list(tmp_path.iterdir()) == []
