"""Both memory meters against allocations of known size."""

import subprocess

import pytest
import torch

from benchmarks.memory import in_fresh_process, peak_allocated, peak_resident
from benchmarks.problem import Shape

MIB = 2**20


def transient_and_result():
    """96 MiB alive at once, in three blocks; 64 MiB of them are freed at the end."""
    kept = torch.ones(8 * MIB)
    first = torch.ones(8 * MIB)
    del first  # the next block takes its place
    second, third = torch.ones(8 * MIB), torch.ones(8 * MIB)
    del second, third
    return kept


def test_resident_peak_of_a_known_allocation():
    assert peak_resident(lambda: torch.ones(24 * MIB)) == pytest.approx(96 * MIB, abs=2 * MIB)
    assert peak_resident(transient_and_result) == pytest.approx(96 * MIB, abs=2 * MIB)
    assert peak_resident(lambda: None) < MIB


def test_memory_that_was_held_before_does_not_count():
    held = torch.ones(24 * MIB)
    assert peak_resident(lambda: held.add_(1)) < MIB


def test_allocated_peak_of_a_known_allocation():
    assert peak_allocated(transient_and_result) == pytest.approx(96 * MIB, abs=1024)


@pytest.mark.slow  # a new process imports torch
def test_meters_agree_on_the_loss_in_a_process_of_its_own():
    peaks = in_fresh_process("ours", Shape(16, 64, 64, 16, 512))
    assert peaks["resident"] == pytest.approx(peaks["allocated"], rel=0.1, abs=2 * MIB)


def test_a_failing_process_says_why(monkeypatch):
    died = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError: 7 GiB")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    with pytest.raises(RuntimeError, match=r"^MemoryError: 7 GiB$"):
        in_fresh_process("ours", Shape(1, 2, 1, 0, 1))
