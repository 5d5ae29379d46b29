"""Two processes measure together what one measures alone: unequal sets, samples of which each makes a part."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from domains.imagenet.metrics.feature_network import Features
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.moments import Moments
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.sample_stream import SampleStream, balanced_labels


def parts() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=source), torch.randn(7, 4, generator=source) + 10


class Halves:
    """A feature network: the means of an image's upper and lower half, and of every row as spatial features."""

    name = "halves"

    def features(self, images: torch.Tensor) -> Features:
        rows = images.flatten(2).mean(1)
        return Features(rows.unflatten(1, (2, -1)).mean(2), rows[:, :3], rows[:, 3:7])


def measured(rank: int, ranks: int) -> tuple[list[torch.Tensor], int]:
    """What one of so many processes knows of 21 samples, and how often it called the generator."""
    torch.manual_seed(0)
    generator = MlpGenerator(MlpConfig(hidden=16, depth=1))
    calls = []
    generator.register_forward_hook(lambda *_: calls.append(1))
    stream = SampleStream(generator, balanced_labels(10, 21), torch.float32, batch=5, rank=rank, ranks=ranks)
    shown = torch.tensor([0, 9, 20, 10])
    found = gather(stream.at(1.5, shown), Halves()).over_ranks()
    assert found.spatial is not None and found.logits is not None
    whole = [found.moments.mean, found.moments.scatter, found.spatial.mean, found.spatial.scatter]
    return [torch.tensor(found.moments.count), *whole, found.pooled, found.logits, stream.shown(shown)], len(calls)


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    moments = Moments.of(parts()[rank]).over_ranks()
    samples, calls = measured(rank, 2)
    torch.save([moments.count, moments.mean, moments.scatter, samples, calls], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_together_find_what_one_process_finds(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    whole = Moments.of(torch.cat(parts()))
    alone, _ = measured(0, 1)
    for rank in range(2):
        count, mean, scatter, samples, calls = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == whole.count == 37
        torch.testing.assert_close(mean, whole.mean)
        torch.testing.assert_close(scatter, whole.scatter)
        for ours, theirs in zip(samples, alone, strict=True):
            torch.testing.assert_close(ours, theirs)
        # 10 and 11 samples: a generator whose weights are shared out is called together.
        assert calls == 3


def test_one_process_keeps_its_own():
    moments = Moments.of(parts()[0])
    assert moments.over_ranks() is moments
