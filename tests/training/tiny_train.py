"""The smallest complete training command: every random source, a queue, averages; the loop that domains write.

On several ranks each has data, random numbers and a queue of its own.
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drifting.training.checkpoint import Checkpoint
from drifting.training.command_line import command
from drifting.training.config import CheckpointConfig, EmaConfig, LogConfig, OptimConfig, ParallelConfig, RunConfig
from drifting.training.ema import Ema
from drifting.training.launch import prepare
from drifting.training.metrics_log import open_log
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize
from drifting.training.random import seed_everything
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState, every
from drifting.training.stop import StopRequest


@dataclass
class TinyConfig:
    run: RunConfig
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-2, warmup_steps=7, schedule="cosine"))
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(decays=[0.9, 0.99], warmup=True))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    pause: float = 0.0  # seconds per step, so that a test can kill in between
    poison_at: int = -1  # step whose loss is NaN


class RingBuffer:
    def __init__(self, size: int) -> None:
        self.rows, self.pushed = torch.zeros(size, 4), 0

    def push(self, rows: Tensor) -> None:
        for row in rows:
            self.rows[self.pushed % len(self.rows)] = row
            self.pushed += 1

    def state_dict(self) -> dict[str, object]:
        return {"rows": self.rows, "pushed": self.pushed}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.rows.copy_(state["rows"])
        self.pushed = state["pushed"]


@command(TinyConfig, "tiny", configs=Path(__file__).parent / "configs")
def main(config: TinyConfig) -> None:
    world = prepare(config.run, config.parallel)
    run_dir = open_run(config.run, config)
    seed_everything(config.run.seed)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))
    net.to(world.device)
    ema = Ema(net, config.ema.decays, warmup=config.ema.warmup)
    model = parallelize(net, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(net, config.optim)
    queue, state = RingBuffer(32), TrainState()
    seed_everything(config.run.seed + world.rank)
    checkpoint = Checkpoint(
        run_dir, keep=config.checkpoint.keep, net=net, ema=ema, optimizer=optimizer, queue=queue, state=state
    )
    checkpoint.load_latest()
    steps = config.run.steps
    log = open_log(run_dir, total=steps, start=state.step, show=["grad_norm"], main=world.is_main)
    with StopRequest() as stop, log, checkpoint.in_background():
        while state.step < steps:
            queue.push(torch.randn(3, 4) + random.random() + np.random.rand())  # noqa: NPY002
            loss = (model(torch.randn(8, 4)) - queue.rows[torch.randint(32, (8,))]).square().mean()
            loss = loss * (float("nan") if state.step == config.poison_at else 1.0)
            grad_norm = optimizer_step(loss, net, optimizer, config.optim, step=state.step, total_steps=steps)
            ema.update(net)
            state.step += 1
            if every(config.log.every, state.step, last=steps):
                log.write(state.step, {"loss": loss, "grad_norm": grad_norm, "lr": optimizer.param_groups[0]["lr"]})
            stopping = stop.requested()
            if stopping or every(config.checkpoint.every, state.step, last=steps):
                checkpoint.save(state.step)
            if stopping:
                break
            time.sleep(config.pause)
    if state.step < steps:
        stop.announce(run_dir, step=state.step, total=steps)
    world.finish()


if __name__ == "__main__":
    main()
