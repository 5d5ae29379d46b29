"""Compilation of the C steps and what can go wrong with it: each in a process that has not loaded the library yet."""

import multiprocessing
import os
import stat
import textwrap
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

from drifting import DriftLoss
from drifting.native.library import load


@dataclass
class Report:
    loaded: bool
    warned: list[str]
    loss: float
    exact: float

    @property
    def right(self) -> bool:
        return abs(self.loss - self.exact) < 1e-5 * self.exact


def report(environment: dict[str, str]) -> Report:
    """Evaluate a loss twice under these environment variables; runs in a child process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    gen, pos = torch.randn(3, 8, 40), torch.randn(3, 9, 40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = DriftLoss()(gen, pos), DriftLoss()(gen, pos)
    assert torch.equal(first, second)
    exact = DriftLoss()(gen.double(), pos.double())
    return Report(load() is not None, [str(w.message) for w in caught], first.item(), exact.item())


def report_without_home(environment: dict[str, str]) -> Report:
    """The same for a user without a home directory, as containers have them."""
    with mock.patch.object(Path, "home", side_effect=RuntimeError("Could not determine home directory.")):
        return report(environment)


@pytest.fixture(scope="module")
def processes() -> Callable[..., list[Report]]:
    """Runs `target` once for each environment, all at the same time."""
    # Forked from a server that has imported what takes seconds, and has not loaded the library.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drifting", "hypothesis", "numpy", "pytest"])

    def run(*environments: dict[str, str], target: Callable[[dict[str, str]], Report] = report) -> list[Report]:
        with ProcessPoolExecutor(len(environments), mp_context=context, max_tasks_per_child=1) as pool:
            return list(pool.map(target, environments))

    return run


def program(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_first_use_compiles_into_the_cache_and_the_next_finds_it(processes, tmp_path):
    environment = {
        "XDG_CACHE_HOME": str(tmp_path),
        "CC": program(tmp_path / "cc", f'echo x >> {tmp_path}/log; cc "$@"'),
    }
    for _ in range(2):
        (found,) = processes(environment)
        assert found.loaded and found.right and not found.warned
        assert (tmp_path / "log").read_text().count("x") == 1
    assert [path.suffix for path in (tmp_path / "drifting").iterdir()] == [".so"]
    assert (tmp_path / "drifting").stat().st_mode & 0o077 == 0


def test_two_processes_that_compile_at_once_do_not_disturb_each_other(processes, tmp_path):
    """The compiler waits until it has been started twice, and writes down what for."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    compiler = program(
        tmp_path / "cc",
        f"""
        echo "$@" >> {log}
        for i in $(seq 600); do test $(wc -l < {log}) -ge 2 && break; sleep 0.1; done
        exec cc "$@"
        """,
    )
    found = processes(*[{"XDG_CACHE_HOME": str(cache), "CC": compiler}] * 2)
    assert all(one.loaded and one.right and not one.warned for one in found)
    (library,) = (cache / "drifting").iterdir()
    commands = [line.split() for line in log.read_text().splitlines()]
    written = {command[command.index("-o") + 1] for command in commands}
    # Neither writes to what the other may have loaded already.
    assert len(commands) == len(written) == 2 and str(library) not in written


@pytest.mark.parametrize("variables", [{"DRIFTING_NATIVE": "0"}, {"CC": "/nonexistent"}], ids=["off", "no compiler"])
def test_without_compiled_steps_the_numbers_are_the_same_and_nothing_is_said(processes, tmp_path, variables):
    (found,) = processes({"XDG_CACHE_HOME": str(tmp_path), **variables})
    assert not found.loaded and found.right and not found.warned
    assert not list(tmp_path.iterdir())


def test_a_compiler_may_have_arguments(processes, tmp_path):
    wrapper = program(tmp_path / "wrapper", f'echo "$1" >> {tmp_path}/log; exec "$@"')
    (found,) = processes({"XDG_CACHE_HOME": str(tmp_path), "CC": f"{wrapper} cc"})
    assert found.loaded and found.right and not found.warned
    assert (tmp_path / "log").read_text() == "cc\n"


def test_a_failing_compiler_is_reported_once_with_what_it_said(processes, tmp_path):
    compiler = program(tmp_path / "broken", "echo 'no such flag: -O3' >&2; exit 1")
    (found,) = processes({"XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": compiler})
    assert not found.loaded and found.right
    (message,) = found.warned
    assert "kernels.c could not be compiled" in message and compiler in message
    assert "no such flag: -O3" in message and "DRIFTING_NATIVE=0" in message
    assert not list((tmp_path / "cache" / "drifting").iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_cache_that_others_can_write_is_refused(processes, tmp_path, mode):
    """Whoever writes there would have their code run here."""
    cache = tmp_path / "drifting"
    cache.mkdir()
    cache.chmod(mode)
    (found,) = processes({"XDG_CACHE_HOME": str(tmp_path)})
    assert not found.loaded and found.right
    (message,) = found.warned
    assert f"{cache} can be written by others" in message and "chmod 700" in message
    assert not list(cache.iterdir())


def test_a_user_without_a_home_needs_a_cache_directory_only(processes, tmp_path):
    (found,) = processes({"XDG_CACHE_HOME": str(tmp_path)}, target=report_without_home)
    assert found.loaded and found.right and not found.warned
