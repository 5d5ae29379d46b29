"""Many environments in a few processes, commanded together, each error named and in bounded time.

    with VectorEnvironment(task, seats=8, workers=2, observation_steps=2) as environments:
        chunks = environments.command({0: Start(seed=100_000), 1: Start(seed=100_001)})
        chunks = environments.command({0: Run(actions), 1: Run(actions)})

A seat is one environment; worker w has the seats w, w + workers, ... and plays them one after another. Simulators, and
with them any GL context, live in the workers only, which are forked from a process that never made one. What an episode
does depends on its seed and actions alone, not on seats or workers.
"""

import multiprocessing
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

import numpy as np

from domains.robotics.environments.seat import Chunk, Film, Seat
from domains.robotics.task import TaskConfig
from drifting.training.config import require
from drifting.training.errors import ConfigError, TrainingError

# Seconds for one command of all seats of a worker. A robosuite process compiles for up to 15 s at its first step.
TIMEOUT = 300.0
CLOSING_SECONDS = 5.0


class RolloutError(TrainingError):
    """A worker crashed, failed or did not answer; the message names it and the seeds that it was playing."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the episode of `seed`; `filmed`: with pictures."""

    seed: int
    filmed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Execute actions [Ta, A] in the episode that the seat is playing."""

    actions: np.ndarray


Command = Start | Run


class VectorEnvironment:
    """`seats` environments in `workers` processes; workers=0 plays them in this process, for debugging.

    Use it as a context manager, or `close` it: its processes end with it, and with this process in any case.
    """

    def __init__(
        self,
        task: TaskConfig,
        *,
        seats: int = 8,
        workers: int = 1,
        observation_steps: int = 2,
        film: Film | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        require(seats >= 1, "seats", "at least 1", seats)
        require(workers >= 0, "workers", "at least 0", workers)
        require(observation_steps >= 1, "observation_steps", "at least 1", observation_steps)
        require(timeout > 0, "timeout", "positive, in seconds", timeout)
        self.task, self.seats, self.observation_steps = task, seats, observation_steps
        self._timeout = timeout
        self._seeds: dict[int, int] = {}  # what each seat is playing, for messages
        setting = (task, observation_steps, film or Film())
        self._local = {seat: Seat(*setting) for seat in range(seats)} if workers == 0 else {}
        self._workers = [Worker(number, setting) for number in range(min(workers, seats))]

    def command(self, commands: Mapping[int, Command]) -> dict[int, Chunk]:
        """Give each named seat its command; returns when all have done theirs.

        Raises RolloutError if a worker dies, fails, or takes longer than `timeout`, and ConfigError where the simulator
        itself is at fault (a missing package); the environments are closed then.
        """
        for seat, given in commands.items():
            require(0 <= seat < self.seats, "seat", f"in [0, {self.seats})", seat)
            if isinstance(given, Start):
                self._seeds[seat] = given.seed
        if self._local:
            return {seat: _obey(self._local[seat], given) for seat, given in commands.items()}
        try:
            return self._command(commands)
        except BaseException:
            self.close(kill=True)
            raise

    def _command(self, commands: Mapping[int, Command]) -> dict[int, Chunk]:
        if not self._workers:
            raise RolloutError("these environments are closed; make new ones")
        waiting: dict[Worker, list[int]] = {}
        for worker in self._workers:
            seats = [seat for seat in commands if seat % len(self._workers) == worker.number]
            if seats:
                worker.send([(seat, commands[seat]) for seat in seats])
                waiting[worker] = seats
        chunks: dict[int, Chunk] = {}
        deadline = time.monotonic() + self._timeout
        while waiting:
            ready = wait(
                [end for worker in waiting for end in (worker.connection, worker.process.sentinel)],
                timeout=max(0.0, deadline - time.monotonic()),
            )
            if not ready:
                names = "; ".join(self._playing(worker, seats) for worker, seats in waiting.items())
                raise RolloutError(f"no answer within {self._timeout:g} s from {names}")
            for worker in [worker for worker in waiting if worker.connection in ready]:
                chunks |= self._answer(worker, waiting.pop(worker))
            for worker, seats in waiting.items():
                if worker.process.sentinel in ready and not worker.connection.poll():
                    raise RolloutError(self._death(worker, seats))
        return {seat: chunks[seat] for seat in commands}

    def _answer(self, worker: "Worker", seats: list[int]) -> dict[int, Chunk]:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise RolloutError(self._death(worker, seats)) from error
        if isinstance(answer, Failure):
            if answer.config:
                raise ConfigError(answer.text)
            raise RolloutError(f"{self._playing(worker, [answer.seat])} failed:\n{answer.text}")
        return dict(answer)

    def _death(self, worker: "Worker", seats: list[int]) -> str:
        worker.process.join(CLOSING_SECONDS)
        code = worker.process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return f"{self._playing(worker, seats)} {how}"

    def _playing(self, worker: "Worker", seats: list[int]) -> str:
        seeds = ", ".join(str(self._seeds.get(seat)) for seat in seats)
        return f"worker {worker.number} ({self.task.name}, seeds {seeds})"

    def close(self, *, kill: bool = False) -> None:
        """End the workers; those that do not end by themselves within seconds, or all with `kill`, are killed."""
        for seat in self._local.values():
            seat.close()
        for worker in self._workers:
            worker.end(kill=kill)
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kill=kind is not None)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in a worker, as text; `config`: a mistake of use or of the machine, to be shown as one line."""

    seat: int
    text: str
    config: bool


class Worker:
    """A process that plays seats, and this end of the pipe to it."""

    def __init__(self, number: int, setting: tuple[TaskConfig, int, Film]) -> None:
        # A forked child would inherit this process's threads and CUDA context; a fork server has neither.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.number = number
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_play, args=(other, setting), daemon=True)
        self.process.start()
        other.close()

    def send(self, commands: list[tuple[int, Command]]) -> None:
        """Hand over; a dead worker is noticed by whoever waits for its answer."""
        try:
            self.connection.send(commands)
        except (BrokenPipeError, ConnectionResetError):
            return

    def end(self, *, kill: bool) -> None:
        """Ask it to end, then make sure."""
        if not kill:
            self.send([])
            self.process.join(CLOSING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
        self.process.join(CLOSING_SECONDS)
        self.connection.close()


def _obey(seat: Seat, command: Command) -> Chunk:
    return seat.start(command.seed, command.filmed) if isinstance(command, Start) else seat.run(command.actions)


def _play(connection: Connection, setting: tuple[TaskConfig, int, Film]) -> None:
    """A worker's life: obey lists of commands until an empty one, or until the other end is gone."""
    seats: dict[int, Seat] = {}
    while True:
        try:
            commands: list[tuple[int, Command]] = connection.recv()
        except (EOFError, KeyboardInterrupt):
            break
        if not commands:
            break
        connection.send(_answer_to(commands, seats, setting))
    for seat in seats.values():
        seat.close()


def _answer_to(
    commands: list[tuple[int, Command]], seats: dict[int, Seat], setting: tuple[TaskConfig, int, Film]
) -> list[tuple[int, Chunk]] | Failure:
    chunks = []
    for number, command in commands:
        try:
            chunks.append((number, _obey(seats.setdefault(number, Seat(*setting)), command)))
        except TrainingError as error:
            return Failure(number, str(error), config=True)
        except Exception:  # whatever a simulator raises is reported, with its traceback
            return Failure(number, traceback.format_exc(), config=False)
    return chunks
