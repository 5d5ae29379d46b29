"""Environments in processes: what they answer, and how crashes and hangs are told."""

import os
import signal
import time

import numpy as np
import pytest
from task_files import task_of

pytest.importorskip("gym_pusht")

from domains.robotics.environments import make_environment
from domains.robotics.environments.seat import Film
from domains.robotics.environments.vectorized import RolloutError, Run, Start, VectorEnvironment
from drifting.training.errors import ConfigError

PUSH_T = task_of("push_t", max_steps=20)
ACROSS = np.column_stack([np.linspace(100, 450, 8), np.full(8, 256.0)])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_seats_play_the_episodes_of_their_seeds(workers):
    with VectorEnvironment(PUSH_T, seats=3, workers=workers, observation_steps=2) as environments:
        started = environments.command({seat: Start(seed=100 + seat) for seat in range(3)})
        chunks = environments.command({2: Run(ACROSS), 0: Run(ACROSS[:5])})
    assert list(started) == [0, 1, 2]
    assert set(chunks) == {0, 2}
    alone = make_environment(PUSH_T)
    for seat, actions in ((0, ACROSS[:5]), (2, ACROSS)):
        first, _ = alone.reset(seed=100 + seat)
        steps = [alone.step(action) for action in actions]
        np.testing.assert_array_equal(started[seat].observation["keypoint"], [first["keypoint"]] * 2)
        for key in ("keypoint", "agent_pos"):
            np.testing.assert_array_equal(chunks[seat].observation[key], [step[0][key] for step in steps[-2:]])
        assert chunks[seat].rewards == [step[1] for step in steps]
        assert not chunks[seat].ended


def test_a_chunk_stops_where_the_episode_ends():
    with VectorEnvironment(PUSH_T, seats=1, workers=0) as environments:
        environments.command({0: Start(seed=1)})
        lengths = [len(environments.command({0: Run(ACROSS)})[0].rewards) for _ in range(2)]
        last = environments.command({0: Run(ACROSS)})[0]
        assert [*lengths, len(last.rewards)] == [8, 8, 4]
        assert last.ended
        assert not last.success
        environments.command({0: Start(seed=2)})  # and the seat is free for another
        assert not environments.command({0: Run(ACROSS)})[0].ended


def test_films_have_the_asked_rate_and_size():
    fast = task_of("push_t", control_hz=20, max_steps=20)
    with VectorEnvironment(fast, seats=2, workers=0, film=Film(size=96, fps=10)) as environments:
        environments.command({0: Start(seed=1, filmed=True), 1: Start(seed=1)})
        frames = [environments.command({0: Run(ACROSS), 1: Run(ACROSS)}) for _ in range(3)]
    assert [len(chunk[0].frames) for chunk in frames] == [4, 4, 2]  # every second step
    assert frames[0][0].frames[0].shape == (96, 96, 3)
    assert all(chunk[1].frames == [] for chunk in frames)


def test_a_simulator_s_exception_names_worker_seed_and_cause():
    with VectorEnvironment(PUSH_T, seats=2, workers=1) as environments:
        environments.command({0: Start(seed=41), 1: Start(seed=42)})
        with pytest.raises(RolloutError, match=r"worker 0 \(push_t, seeds 42\) failed:(.|\n)*action must have shape"):
            environments.command({0: Run(ACROSS), 1: Run(np.zeros((2, 5)))})
        with pytest.raises(RolloutError, match="closed"):
            environments.command({0: Run(ACROSS)})


def test_a_killed_worker_is_an_error_at_once():
    with VectorEnvironment(PUSH_T, seats=2, workers=2, timeout=60) as environments:
        environments.command({0: Start(seed=41), 1: Start(seed=42)})
        os.kill(environments._workers[1].process.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RolloutError, match=r"worker 1 \(push_t, seeds 42\) was ended by signal 9"):
            environments.command({0: Run(ACROSS), 1: Run(ACROSS)})
        assert time.monotonic() - began < 10


def test_a_hanging_worker_is_an_error_after_the_timeout():
    with VectorEnvironment(PUSH_T, seats=2, workers=2, timeout=60) as environments:
        environments.command({0: Start(seed=41), 1: Start(seed=42)})
        processes = [worker.process for worker in environments._workers]
        os.kill(processes[0].pid, signal.SIGSTOP)
        environments._timeout = 0.5
        with pytest.raises(RolloutError, match=r"no answer within 0.5 s from worker 0 \(push_t, seeds 41\)"):
            environments.command({0: Run(ACROSS), 1: Run(ACROSS)})
        assert not any(process.is_alive() for process in processes)


def test_a_mistake_of_use_comes_through_as_one_line():
    wrong = task_of("push_t", observations={"object": 3})
    with VectorEnvironment(wrong, seats=1, workers=1) as environments, pytest.raises(ConfigError) as caught:
        environments.command({0: Start(seed=1)})
    assert str(caught.value).startswith("task.observations.object must be one of")
    assert "\n" not in str(caught.value)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="seats must be at least 1, got 0"):
        VectorEnvironment(PUSH_T, seats=0)
    with pytest.raises(ValueError, match="timeout must be positive"):
        VectorEnvironment(PUSH_T, timeout=0)
    with VectorEnvironment(PUSH_T, seats=2, workers=0) as environments:
        with pytest.raises(ValueError, match=r"seat must be in \[0, 2\), got 2"):
            environments.command({2: Start(seed=1)})
        with pytest.raises(RuntimeError, match="comes before"):
            environments.command({0: Run(ACROSS)})
