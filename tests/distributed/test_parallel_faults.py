"""What one rank's fault does to the others: the same step, a bounded time, the reason. Two processes; gloo, CPU."""

import json
import os
import time

import pytest
import torch
import torch.multiprocessing as mp
from parallel_ports import free_ports, start_rank
from torch import nn

from drifting.training.config import OptimConfig, ParallelConfig, RunConfig
from drifting.training.errors import NonFiniteError, OtherRankError
from drifting.training.launch import naming_lost_ranks, prepare
from drifting.training.optimizer import build_optimizer, optimizer_step
from drifting.training.parallelize import parallelize

SECONDS = 20.0  # parallel.timeout
POISONED = 2  # step


def poisoned_training(mode):
    """Step at which this rank stops, why, and whether its weights are those before that step."""
    config = ParallelConfig(mode=mode, timeout=SECONDS)
    world = prepare(RunConfig(name="a", steps=9, device="cpu"), config)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = parallelize(net, world, config)
    optimizer = build_optimizer(net, OptimConfig())
    for step in range(9):
        before = [parameter.detach().clone() for parameter in net.parameters()]
        loss = model(torch.ones(2, 3)).square().mean()
        if step == POISONED and world.rank == 1:
            loss = loss.detach() * float("inf") + loss  # its gradient is finite
        try:
            optimizer_step(loss, net, optimizer, OptimConfig(), step=step, total_steps=9)
        except NonFiniteError as error:
            same = all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
            return [step, str(error), bool(same)]
    return [9, "", False]


def different_seeds():
    config = ParallelConfig(mode="fsdp", timeout=SECONDS)
    world = prepare(RunConfig(name="a", steps=9, device="cpu"), config)
    torch.manual_seed(world.rank)
    try:
        parallelize(nn.Linear(3, 4), world, config)
    except RuntimeError as error:
        return str(error)
    return ""


def lost_rank():
    """Rank 1 ends without a word; how long rank 0 waits, and what it says."""
    world = prepare(RunConfig(name="a", steps=9, device="cpu"), ParallelConfig(mode="ddp", timeout=SECONDS))
    if world.rank == 1:
        os._exit(0)
    began = time.monotonic()
    try:
        with naming_lost_ranks():
            world.mean({"loss": torch.tensor(1.0)})
    except OtherRankError as error:
        return [time.monotonic() - began, str(error)]
    return [0.0, ""]


def run_rank(rank, folder, port):
    torch.set_num_threads(1)
    start_rank(rank, 2, port)
    found = {mode: poisoned_training(mode) for mode in ("ddp", "fsdp")} | {"seeds": different_seeds()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    found["lost"] = lost_rank()  # of rank 0
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # there is nobody left to part from


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    mp.spawn(run_rank, args=(folder, *free_ports(1)), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_the_same_step(ranks, mode):
    for rank in ranks:
        step, said, unchanged = rank[mode]
        assert step == POISONED
        assert f"step {POISONED}: the loss is inf on rank 1; the weights are those of step {POISONED}" in said
        assert unchanged


def test_ranks_that_start_differently_are_refused_by_all(ranks):
    for rank in ranks:
        assert rank["seeds"] == "ranks start from different weights; seed them alike before the module is built"


def test_a_lost_rank_is_noticed_within_the_timeout(ranks):
    seconds, said = ranks[0]["lost"]
    assert seconds < SECONDS + 5
    assert "rank 0 lost another rank, which ended" in said
