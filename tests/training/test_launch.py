"""Device, threads and ranks before the first tensor."""

import pytest
import torch
import torch.distributed as dist

from drifting.training.config import ParallelConfig, RunConfig
from drifting.training.errors import ConfigError, OtherRankError
from drifting.training.launch import naming_lost_ranks, prepare

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    if dist.is_initialized():
        dist.destroy_process_group()


def run(**settings):
    return RunConfig(name="a", steps=1, **settings)


def launched(monkeypatch, **changes):
    for name, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(name, value)


def test_threads_and_determinism_are_set():
    world = prepare(run(device="cpu", threads=2, deterministic=True))
    assert (world.device, world.rank, world.size, world.is_main) == (torch.device("cpu"), 0, 1, True)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    prepare(run(device="cpu", threads=1))
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert not dist.is_initialized()


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prepare(run(device="auto")).device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert prepare(run(device="auto")).device == torch.device("cuda", 0)
    assert prepare(run(device="cuda:1")).device == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"run.device=cuda:2 is not available: this machine has 2 CUDA devices"):
        prepare(run(device="cuda:2"))


def test_each_rank_takes_the_device_of_its_local_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("drifting.training.launch._join", lambda *_: None)
    launched(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for asked in ("auto", "cuda"):
        world = prepare(run(device=asked), ParallelConfig(mode="ddp"))
        assert (world.device, world.rank, world.size) == (torch.device("cuda", 1), 1, 4)
        assert not world.is_main
    with pytest.raises(ConfigError, match=r"run.device=cuda:0 is one device for 2 processes on this node"):
        prepare(run(device="cuda:0"), ParallelConfig(mode="ddp"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="this machine has 1 CUDA devices for 2 processes"):
        prepare(run(device="auto"), ParallelConfig(mode="ddp"))


def test_unavailable_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"run.device=cuda is not available"):
        prepare(run(device="cuda"))


def test_modes_that_do_not_fit_the_ranks_are_refused_before_anything_waits(monkeypatch):
    launched(monkeypatch)
    with pytest.raises(ConfigError, match=r"parallel=single is one process, but 4 were started. Add parallel=ddp"):
        prepare(run(device="cpu"))
    with pytest.raises(ConfigError, match=r"parallel.shard must divide the number of ranks, 4, got 3"):
        prepare(run(device="cpu"), ParallelConfig(mode="hsdp", shard=3))
    with pytest.raises(ConfigError, match=r"parallel.shard_generated must divide the number of ranks, 4, got 3"):
        prepare(run(device="cpu"), ParallelConfig(mode="ddp", shard_generated=3))


@pytest.mark.parametrize(("mode", "names"), [("ddp", None), ("fsdp", ("shard",)), ("hsdp", ("replicate", "shard"))])
def test_every_mode_runs_without_a_launcher(mode, names):
    world = prepare(run(device="cpu"), ParallelConfig(mode=mode))
    assert (world.size, dist.get_world_size()) == (1, 1)
    assert (None if world.mesh is None else world.mesh.mesh_dim_names) == names
    world.finish()
    assert not dist.is_initialized()


def test_a_broken_exchange_is_one_line_and_other_errors_stay():
    prepare(run(device="cpu"), ParallelConfig(mode="ddp"))
    with pytest.raises(OtherRankError, match="rank 0 lost another rank"), naming_lost_ranks():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shape"), naming_lost_ranks():
        raise RuntimeError("shape mismatch")
