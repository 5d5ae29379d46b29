"""A source that hangs is named, by one thread, and the process ends after the bound."""

import subprocess
import sys
import threading
import time

import pytest

from drifting.training.stall_watch import EXIT_STALLED, StallWatch


def test_a_stalled_source_is_named_with_its_rank_and_since_when(capsys):
    with StallWatch(0.04, 10.0, rank=3) as watch:
        with watch.waiting_for("latents, shard 12"):
            time.sleep(0.15)
        with watch.waiting_for("labels"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3  # at 0.04 and 0.08, perhaps none for want of a processor
    assert all(line.startswith("warning: rank 3 has waited 0 s for data, since ") for line in lines)
    assert all(line.endswith(": latents, shard 12") for line in lines)


def test_quick_fetches_are_not_reported_however_many(capsys):
    with StallWatch(0.2, 10.0) as watch:
        assert list(watch.iterate("numbers", range(5))) == [0, 1, 2, 3, 4]
        for _ in range(30):
            with watch.waiting_for("numbers"):
                time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_time_between_fetches_is_not_waiting(capsys):
    with StallWatch(0.03, 10.0) as watch:
        for _ in watch.iterate("numbers", range(2)):
            time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_end_comes_once_after_the_bound(capsys):
    ended = []
    with StallWatch(0.02, 0.08, end=ended.append) as watch, watch.waiting_for("a dead mount"):
        time.sleep(0.3)
    (message,) = ended
    assert "for data" in message
    assert "a dead mount. Gave up (log.stall_limit)" in message
    assert message in capsys.readouterr().err


def test_one_thread_and_none_afterwards():
    before = threading.active_count()
    with StallWatch(1.0, None) as watch:
        for _ in range(3):
            with watch.waiting_for("x"):
                assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_source_that_raises_is_no_longer_waited_for(capsys):
    with StallWatch(0.03, 10.0) as watch:
        with pytest.raises(OSError, match="gone"), watch.waiting_for("disk"):
            raise OSError("gone")
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_bounds_must_be_in_order():
    with pytest.raises(ValueError, match=r"log.stall_warning must be positive and below .*, got 5 and 5"):
        StallWatch(5, 5)


# Loaded by its path: the package would import torch, which takes longer than the whole test.
HANGS = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("stall_watch", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
watch = module.StallWatch(0.05, 0.2, rank=1)
with watch.waiting_for("a pipe that nobody writes to"):
    os.read(os.pipe()[0], 1)
"""


def test_a_process_that_hangs_in_a_read_ends_with_its_name_and_place():
    source = sys.modules[StallWatch.__module__].__file__
    result = subprocess.run([sys.executable, "-c", HANGS, source], capture_output=True, text=True, timeout=30)
    assert result.returncode == EXIT_STALLED
    assert "error: rank 1 has waited" in result.stderr
    assert "a pipe that nobody writes to" in result.stderr
    assert "most recent call first" in result.stderr  # where the threads are
