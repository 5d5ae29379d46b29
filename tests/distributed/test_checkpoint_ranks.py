"""Checkpoints of many ranks: any sharding and number of ranks reads any other's; faults are agreed on. gloo, CPU.

Four processes play every scene one after the other, in process groups of 4, 2 and 1; the tests look at what they
reported.
"""

import copy
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from drifting import SampleQueue
from drifting.training import checkpoint_folder
from drifting.training.checkpoint import Checkpoint, load_entries
from drifting.training.checkpoint_file import checkpoint_paths
from drifting.training.config import RunConfig
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError, RunDirError
from drifting.training.pieces import map_tensors
from drifting.training.run_dir import open_run
from drifting.training.state import TrainState
from drifting.training.stop import StopRequest

RANKS = 4
CLASSES = 3


class Run:
    """A small run, seeded by rank; the sizes 5, 7 and 3 do not divide evenly."""

    def __init__(self, run_dir, mode, *, seed=0):
        rank = dist.get_rank() if dist.is_initialized() else 0
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        self.ema = Ema(self.net, [0.5, 0.9])
        self.model = self.net
        if mode == "ddp":
            self.model = DistributedDataParallel(self.net)
        elif mode != "single":
            shape = (2, 2) if mode == "hsdp" else (dist.get_world_size(),)
            names = ("replicate", "shard")[-len(shape) :]
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            for module in (self.net, *self.ema.models):
                fully_shard(module, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.queue = SampleQueue(CLASSES, 8, (1,), generator=torch.Generator().manual_seed(rank))
        self.state = TrainState()
        torch.manual_seed(100 * seed + rank)
        self.checkpoint = Checkpoint(
            run_dir, keep=9, net=self.model, ema=self.ema, optimizer=self.optimizer, queue=self.queue, state=self.state
        )

    def train(self, steps):
        for _ in range(steps):
            rank = dist.get_rank() if dist.is_initialized() else 0
            values = 100.0 * self.state.step + 10 * rank + torch.arange(CLASSES)
            self.queue.push(values[:, None], torch.arange(CLASSES))
            self.optimizer.zero_grad()
            out = self.model(torch.randn(6, 5))
            (out - self.queue.sample(torch.arange(CLASSES), 1).mean() / 1000).pow(2).sum().backward()
            self.optimizer.step()
            self.ema.update(self.net)
            self.state.step += 1

    def shared(self):
        """Whole tensors, a copy."""
        states = [self.net.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()]
        return map_tensors(
            states, lambda _, x: x.full_tensor().clone() if isinstance(x, DTensor) else x.detach().clone()
        )

    def own(self):
        return copy.deepcopy([torch.get_rng_state(), self.queue.state_dict(), self.state.step])


def held(queue):
    return [queue.samples[label, : queue.count[label], 0].tolist() for label in range(CLASSES)]


def refused(action, error=CheckpointError):
    try:
        action()
    except error as raised:
        return str(raised)
    return "not refused"


def refuse_once(queue):
    """Its load_state_dict, which does not refuse what puts it back."""

    def refuse(state):
        del queue.load_state_dict
        raise ValueError("capacity must be 8")

    return refuse


def hybrid(folder, report):
    """4 ranks, 2 x 2: save, go on; begin anew from the checkpoint, go on alike."""
    run = Run(folder / "run", "hsdp")
    run.train(2)
    run.checkpoint.save(2)
    run.train(1)
    with run.checkpoint.in_background():
        run.checkpoint.save(3)
        report["saved"] = run.shared(), run.own()
        run.train(2)
    report["undisturbed"] = run.shared(), run.own()
    again = Run(folder / "run", "hsdp", seed=1)
    report["step"] = again.checkpoint.load_latest()
    report["restored"] = again.shared(), again.own()
    again.train(2)
    report["continued"] = again.shared(), again.own()


def resharded(folder, report):
    """2 ranks, fully sharded, go on from what 4 saved."""
    run = Run(folder / "run", "fsdp", seed=2)
    before = torch.get_rng_state()
    report["step"] = run.checkpoint.load_latest()
    report["restored"], report["queue"] = run.shared(), held(run.queue)
    report["generator changed"] = not torch.equal(before, torch.get_rng_state())
    run.train(1)
    run.checkpoint.save(4)
    report["saved"] = run.shared()


def alone(folder, report):
    """One process, plain, goes on from what 2 saved, and leaves one file."""
    run = Run(folder / "run", "single", seed=3)
    report["step"] = run.checkpoint.load_latest()
    report["restored"] = run.shared()
    report["queue"] = held(run.queue)
    run.train(1)
    report["path"] = run.checkpoint.save(5).name
    report["saved"] = run.shared()


def replicated(folder, report):
    """4 data parallel ranks go on from the file of one process; then everything that can go wrong."""
    run = Run(folder / "run", "ddp", seed=4)
    report["step"] = run.checkpoint.load_latest()
    report["restored"], report["queue"], report["draw"] = run.shared(), held(run.queue), torch.randn(3)
    run.checkpoint.save(6)
    rank = dist.get_rank()

    # A disk that is full for one rank.
    write = checkpoint_folder.write_file

    def full(path, content):
        write(path, content)
        raise OSError(28, "No space left on device")

    if rank == 1:
        checkpoint_folder.write_file = full
    report["full"] = refused(lambda: run.checkpoint.save(7))
    checkpoint_folder.write_file = write
    dist.barrier()
    report["after full"] = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    dist.barrier()

    # State that only one rank cannot save; a checkpoint that does not fit on one rank.
    run.state.step = {1, object()} if rank == 2 else 6
    report["object"] = refused(lambda: run.checkpoint.save(7))
    run.state.step = 6
    run.train(1)
    before = run.shared(), run.own()
    if rank == 3:
        run.queue.load_state_dict = refuse_once(run.queue)
    report["misfit"] = refused(run.checkpoint.load_latest)
    report["unchanged"] = [before, (run.shared(), run.own())]

    # The newest damaged in a file that rank 3 reads.
    run.checkpoint.save(7)
    dist.barrier()
    if rank == 0:
        file = folder / "run" / "checkpoints" / "step_00000007" / "rank_00003.pt"
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    dist.barrier()
    report["fallback"] = run.checkpoint.load_latest()
    report["after fallback"] = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())

    # One rank is asked to stop.
    answers = []
    with StopRequest() as stop:
        for step in range(4):
            if rank == 1 and step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            answers.append(stop.requested())
        stop.announce(folder / "run", step=6, total=9)
    report["stop"] = answers

    # A run directory is opened by rank 0, and refused by all.
    config = Root(RunConfig(name="dir", steps=5, root=str(folder)))
    report["opened"] = str(open_run(config.run, config))
    config.run.steps = 6
    report["other"] = refused(lambda: open_run(config.run, config), RunDirError)


@dataclass
class Root:
    run: RunConfig


SCENES = {hybrid: 4, resharded: 2, alone: 1, replicated: 4}


def play(rank, folder):
    torch.set_num_threads(1)
    folder = Path(folder)
    errors = (folder / f"stderr{rank}").open("w")
    os.dup2(errors.fileno(), 2)
    reports = {}
    for scene, count in SCENES.items():
        if rank >= count:
            continue
        # Alone without a process group; the ranks that pause wait for the next group to be complete.
        if count > 1:
            store = dist.FileStore(str(folder / f"store_{scene.__name__}"), count)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        scene(folder, reports.setdefault(scene.__name__, {}))
        if count > 1:
            dist.barrier()
            dist.destroy_process_group()
    torch.save(reports, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The folder, and what each rank reported of each scene."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(play, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module", autouse=True)
def preloaded():
    """Processes start from one that has imported torch already."""
    mp.get_context("forkserver").set_forkserver_preload(["torch.distributed.fsdp", "drifting.training.checkpoint"])


def scene(stage, name):
    return [reports[name] for reports in stage[1] if name in reports]


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_same_ranks_continue_to_the_last_bit(stage):
    for report in scene(stage, "hybrid"):
        assert report["step"] == 3
        assert_same(report["restored"], report["saved"])
        assert_same(report["continued"], report["undisturbed"])
    draws = [report["saved"][1][0] for report in scene(stage, "hybrid")]
    assert not torch.equal(draws[0], draws[1])  # each rank has its own


def test_each_rank_wrote_its_part_once(stage):
    """A hybrid checkpoint holds every number once: what replicas share is in one of their files."""
    folder = stage[0] / "run" / "checkpoints" / "step_00000003"
    files = [torch.load(folder / f"rank_{rank:05d}.pt", weights_only=True)["entries"] for rank in range(RANKS)]
    sizes = [[entries["net"][name].numel() for entries in files] for name in ("0.weight", "1.weight")]
    assert sizes == [[20, 15, 0, 0], [4, 3, 0, 0]]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *(f"rank_0000{r}.pt" for r in range(4))]


@pytest.mark.parametrize(
    ("name", "before", "step"), [("resharded", "hybrid", 3), ("alone", "resharded", 4), ("replicated", "alone", 5)]
)
def test_other_ranks_and_shardings_read_the_same_weights(stage, name, before, step):
    saved = scene(stage, before)[0]["saved"]
    shared = saved[0] if before == "hybrid" else saved
    for report in scene(stage, name):
        assert report["step"] == step
        assert_same(report["restored"], shared)


def test_no_sample_is_lost_between_ranks(stage):
    two, one, four = (scene(stage, name) for name in ("resharded", "alone", "replicated"))
    for label in range(CLASSES):
        of_two = [value for report in two for value in report["queue"][label]]
        assert sorted(of_two) == [100.0 * step + 10 * rank + label for step in range(3) for rank in range(4)]
        assert len(two[0]["queue"][label]) == len(two[1]["queue"][label]) == 6
        newest = [label + value for value in (100.0, 110, 200, 210, 220, 230, 300, 310)]  # of 14, for 8 places
        assert sorted(one[0]["queue"][label]) == newest
        of_four = [value for report in four for value in report["queue"][label]]
        assert sorted(of_four)[1:] == [*newest[2:], 400.0 + label]  # the push of step 4 took the place of the oldest
        assert min(of_four) in newest[:2]


def test_new_ranks_draw_numbers_of_their_own_and_it_is_said(stage):
    draws = [report["draw"] for report in scene(stage, "replicated")]
    assert len({tuple(draw.tolist()) for draw in draws}) == RANKS
    said = (stage[0] / "stderr0").read_text()
    assert "was saved on 4 and continues on 2 ranks" in said
    assert "was saved on 1 and continues on 4 ranks" in said
    assert "generators of ranks 1 to 3 start from seeds derived" in said
    assert "was saved on" not in (stage[0] / "stderr1").read_text()


def test_one_full_disk_stops_every_rank_and_loses_nothing(stage):
    for report in scene(stage, "replicated"):
        assert report["full"].startswith("rank 1: cannot write ")
        assert "No space left on device" in report["full"]
        assert "the last good checkpoint is step_00000006." in report["full"]
        assert report["after full"] == [
            "step_00000002",
            "step_00000003",
            "step_00000004",
            "step_00000005.pt",
            "step_00000006",
        ]
        assert report["object"].startswith("rank 2: cannot write ")
        assert "is a builtins.object; a checkpoint holds only tensors" in report["object"]


def test_refusal_on_one_rank_changes_nothing_on_any(stage):
    for report in scene(stage, "replicated"):
        assert "does not fit this run: rank 3: queue refuses its state: capacity must be 8" in report["misfit"]
        assert_same(*report["unchanged"])


def test_every_rank_falls_back_to_the_same_checkpoint(stage):
    for report in scene(stage, "replicated"):
        assert report["fallback"] == 6
        assert "step_00000007.damaged" in report["after fallback"]
    said = (stage[0] / "stderr0").read_text()
    assert "WARNING: " in said
    assert "rank_00003.pt is damaged" in said
    assert "continues from step_00000006; steps that are lost and trained again: 1." in said


def test_every_rank_stops_at_the_same_step(stage):
    for report in scene(stage, "replicated"):
        assert report["stop"] == [False, False, True, True]
    assert "SIGTERM: stopped after step 6 of 9" in (stage[0] / "stderr0").read_text()


def test_a_run_directory_is_refused_by_every_rank(stage):
    for report in scene(stage, "replicated"):
        assert report["opened"] == str(stage[0] / "dir")
        assert "run.steps: 5 -> 6" in report["other"]


def test_one_process_samples_from_a_checkpoint_of_many(stage):
    """What `load_average` does for the sampling commands."""
    ema = Ema(nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)), [0.5, 0.9])
    assert checkpoint_paths(stage[0] / "run")[-1].is_dir()
    assert load_entries(stage[0] / "run", ema=ema) == 6
    assert_same(ema.state_dict(), scene(stage, "replicated")[0]["restored"][1])
