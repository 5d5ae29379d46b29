"""Device and threads before the first tensor."""

import pytest
import torch

from drifting.training.config import RunConfig
from drifting.training.errors import ConfigError
from drifting.training.launch import prepare


@pytest.fixture(autouse=True)
def restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def run(**settings):
    return RunConfig(name="a", steps=1, **settings)


def test_threads_and_determinism_are_set():
    assert prepare(run(device="cpu", threads=2, deterministic=True)) == torch.device("cpu")
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    prepare(run(device="cpu", threads=1))
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prepare(run(device="auto")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert prepare(run(device="auto")) == torch.device("cuda", 0)
    assert prepare(run(device="cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"run.device=cuda:2 is not available: this machine has 2 CUDA devices"):
        prepare(run(device="cuda:2"))


def test_unavailable_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"run.device=cuda is not available"):
        prepare(run(device="cuda"))
