"""Moments of two processes together are those of one: the sets are of different sizes and far apart."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from domains.imagenet.metrics.moments import Moments


def parts() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=source), torch.randn(7, 4, generator=source) + 10


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    moments = Moments.of(parts()[rank]).over_ranks()
    torch.save([moments.count, moments.mean, moments.scatter], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_moments_of_ranks_are_those_of_the_whole(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    whole = Moments.of(torch.cat(parts()))
    for rank in range(2):
        count, mean, scatter = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == whole.count == 37
        torch.testing.assert_close(mean, whole.mean)
        torch.testing.assert_close(scatter, whole.scatter)


def test_one_process_keeps_its_own():
    moments = Moments.of(parts()[0])
    assert moments.over_ranks() is moments
