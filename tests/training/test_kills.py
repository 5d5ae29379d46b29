"""Killed at any moment, saves included, on one process or two: the same command ends as if nothing had happened."""

import functools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import TinyRuns

from drifting.training import checkpoint, checkpoint_folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run that nobody disturbs leaves, by number of ranks and steps."""

    @functools.cache
    def run(ranks, steps):
        runs = TinyRuns(tmp_path_factory.mktemp("undisturbed"), ranks=ranks, steps=steps)
        runs.finish()
        return runs.content()

    return run


def assert_same(runs, expected):
    (names, held), (expected_names, expected_held) = runs.content(), expected
    assert names == expected_names
    torch.testing.assert_close(held, expected_held, rtol=0, atol=0)


def disturb(runs, kills, draw):
    """Kill all ranks or one, at a random time after the start or after a save; returns how many came amid a save."""
    amid = 0
    for _ in range(kills):
        before = runs.last_step()
        runs.start()
        victims = list(range(runs.ranks))
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, 0.3))  # all, as a launcher does: they may not have met, and wait for each other
        else:
            runs.wait_for(before + draw.randint(1, 2))
            time.sleep(draw.uniform(0, 0.03))
            victims = draw.choice([victims, [draw.choice(victims)]])  # one: the others end by themselves
        runs.kill(*victims)
        assert all(code != 0 for code in runs.join(30)), "the run was over before it was killed"
        amid += bool(runs.left_behind()) if runs.last_step() else 0
        assert runs.last_step() >= before
    return amid


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, undisturbed, record_property, ranks, kills):
    runs = TinyRuns(tmp_path, ranks=ranks, steps=10 + 8 * kills, pause=0.01)
    amid = disturb(runs, kills, random.Random(kills))
    reached = runs.last_step()
    runs.finish()
    assert_same(runs, undisturbed(ranks, runs.steps))
    assert runs.left_behind() == []
    record_property("disturbed", f"{ranks} ranks: {kills} kills, {amid} amid a save, up to step {reached}")


def suicide(condition):
    if condition:
        os.kill(os.getpid(), signal.SIGKILL)


def before_the_manifest(rank):
    replace_text = checkpoint_folder.replace_text
    checkpoint_folder.replace_text = lambda path, text: (suicide("00003" in str(path)), replace_text(path, text))


def before_the_rename(rank):
    rename = Path.rename
    Path.rename = lambda path, target: (suicide(target.name == "step_00000003"), rename(path, target))[1]


def amid_a_file(rank):
    write = checkpoint_folder.write_file

    def partly(path, content):
        if content.step == 3 and content.rank == 1:
            path.write_bytes(b"half of a file")
            suicide(True)
        return write(path, content)

    checkpoint_folder.write_file = partly


def before_the_oldest_goes(rank):
    discard = checkpoint.discard
    checkpoint.discard = lambda path: (suicide("00001" in path.name), discard(path))


def amid_the_removal(rank):
    rmtree = checkpoint_folder.shutil.rmtree

    def partly(path, **options):
        if "00001" in str(path) and path.exists():
            next(iter(path.iterdir())).unlink()
            suicide(True)
        rmtree(path, **options)

    checkpoint_folder.shutil.rmtree = partly


STAGES = {
    amid_a_file: (2, [".step_00000003.tmp"]),
    before_the_manifest: (2, [".step_00000003.tmp"]),
    before_the_rename: (2, [".step_00000003.tmp"]),
    before_the_oldest_goes: (3, []),
    amid_the_removal: (3, [".step_00000001.old.tmp"]),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_killed_at_each_stage_of_a_save_of_two_ranks(tmp_path, undisturbed, stage):
    """One rank dies; the other ends by itself, and says why."""
    runs = TinyRuns(tmp_path, ranks=2, steps=6)
    runs.start(stage)
    codes = runs.join(30)
    assert -signal.SIGKILL in codes
    assert 0 not in codes
    step, left = STAGES[stage]
    assert runs.last_step() == step
    assert set(runs.left_behind()) - {".step_00000004.tmp"} == set(left)  # the other rank may have gone ahead
    runs.finish()
    assert runs.left_behind() == []
    assert_same(runs, undisturbed(2, 6))


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_asked_to_stop_it_saves_and_exits_with_0(tmp_path, undisturbed, ranks, number):
    """Two ranks, of which one is asked, stop at the same step."""
    runs = TinyRuns(tmp_path, ranks=ranks, steps=30, pause=0.02)
    runs.start()
    runs.wait_for(5)
    os.kill(runs.processes[-1].pid, number)
    assert runs.join(30) == [0] * ranks
    step = runs.last_step()
    assert 5 <= step < 30
    said = f"{number.name}: stopped after step {step} of 30, saved in {runs.run_dir}. The same command continues."
    assert runs.said().count(said) == 1
    runs.finish()
    assert_same(runs, undisturbed(ranks, 30))
