"""tiny_train on one or several processes, which start from a process that has imported everything: for many kills."""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_train import TinyConfig, main

from drifting.training.checkpoint_file import checkpoint_paths, read_checkpoint, step_of
from drifting.training.config import CheckpointConfig, LogConfig, ParallelConfig, RunConfig
from drifting.training.metrics_log import read_metrics

LOADED = [  # once; torch._dynamo is what the first optimizer step imports
    "torch._dynamo",
    "torch.distributed.fsdp",
    "drifting.training.checkpoint",
    "drifting.training.command_line",
    "drifting.training.metrics_log",
]


def train(rank: int, ranks: int, root: Path, steps: int, pause: float, store: str, prepare: Callable[[int], None]):
    torch.set_num_threads(1)
    errors = (root / f"stderr{rank}").open("a")
    os.dup2(errors.fileno(), 2)
    prepare(rank)
    if ranks > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
        placement = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in placement.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # the group is there already
    config = TinyConfig(
        run=RunConfig(name="tiny", steps=steps, root=str(root), device="cpu"),
        checkpoint=CheckpointConfig(every=1, keep=2),
        log=LogConfig(every=5),
        parallel=ParallelConfig(mode="single" if ranks == 1 else "ddp"),
        pause=pause,
    )
    main.__wrapped__(config)


def nothing(rank: int) -> None:
    pass


class TinyRuns:
    """Starts of one run, each with `ranks` processes; a checkpoint after every step, the last two kept."""

    def __init__(self, root: Path, *, ranks: int, steps: int, pause: float = 0.0) -> None:
        self.root, self.ranks, self.steps, self.pause = root, ranks, steps, pause
        self.run_dir = root / "tiny"
        self.starts = 0
        self.processes: list[mp.process.BaseProcess] = []

    def start(self, prepare: Callable[[int], None] = nothing) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        self.starts += 1
        store = str(self.root / f"store{self.starts}")
        shared = (self.ranks, self.root, self.steps, self.pause, store, prepare)
        self.processes = [context.Process(target=train, args=(rank, *shared)) for rank in range(self.ranks)]
        for process in self.processes:
            process.start()

    def join(self, seconds: float = 60) -> list[int]:
        """Exit codes; a process that hangs fails the test."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, f"still running after {seconds} s: {codes}, {self.said()}"
        return codes

    def finish(self) -> None:
        """Start and let it end."""
        self.start()
        assert self.join() == [0] * self.ranks, self.said()

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal.SIGKILL)

    def wait_for(self, step: int) -> None:
        """Until a checkpoint of `step` or later is there, or the run is over."""
        while self.last_step() < step and any(process.is_alive() for process in self.processes):
            time.sleep(0.002)

    def last_step(self) -> int:
        paths = checkpoint_paths(self.run_dir)
        return step_of(paths[-1]) if paths else 0

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.root.glob("stderr*")))

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob(".*"))

    def content(self) -> tuple[list[str], list]:
        """The files of the last checkpoints, by name, and what they hold, with the log but its times."""
        paths = checkpoint_paths(self.run_dir)
        files = sorted(file for path in paths for file in ([path] if path.is_file() else path.glob("rank_*.pt")))
        figures = read_metrics(self.run_dir, timings=False)
        names = [str(file.relative_to(self.run_dir)) for file in files]
        return names, [[read_checkpoint(file).entries for file in files], figures]
