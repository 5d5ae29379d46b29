"""Two processes measure together what one measures alone: unequal sets, samples of which each makes a part."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from domains.imagenet import evaluation
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.metrics.feature_network import Features
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.moments import Moments
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.sample_stream import SampleStream, balanced_labels
from drifting.training.config import typed
from drifting.training.errors import ConfigError
from drifting.training.world import World


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


class Grey:
    """Stands for Inception: its name, features of the pixels."""

    name, width, resize = "inception", 64, "tf1"

    def features(self, images: torch.Tensor) -> Features:
        flat = images.flatten(1).float() / 255
        return Features(flat, flat[:, :9], flat[:, :10])


def report_of(folder: Path, world: World) -> tuple[dict, list[str]]:
    """Rows of a report by Inception, and the files that it left."""
    settings = {
        "run": {"name": "small", "steps": 1, "root": str(folder)},
        "generator": {"kind": "mlp", "mlp": {"hidden": 16}},
        "encoder": {"kind": "pixels"},
        "eval": {"alphas": [1.0, 2.0], "samples": 301, "network": "inception", "batch": 40},
    }
    config = typed(settings, ImagenetConfig)
    torch.manual_seed(0)
    generator = config.generator.build()
    evaluation.load_inception_of = lambda *_: Grey()
    folder.mkdir(exist_ok=True)
    rows = evaluation.Evaluation(config, {"": generator}, config.eval, folder, folder, world).measured().rows
    return rows, sorted(path.name for path in folder.iterdir())


def half_a_report(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(torch.device("cpu"), rank, 2)
    rows, files = report_of(Path(folder) / f"of_{rank}", world)
    (Path(folder) / f"{rank}.json").write_text(json.dumps([rows, files]))
    world.finish()


def test_two_processes_write_the_report_that_one_writes(tmp_path, monkeypatch):
    mp.spawn(half_a_report, (str(tmp_path),), nprocs=2)
    (rows, files), (others, nothing) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    monkeypatch.setattr(evaluation, "load_inception_of", None)  # restored afterwards
    alone, expected = report_of(tmp_path / "alone", World(torch.device("cpu")))
    assert (others, nothing) == ({}, [])
    assert files == expected
    assert {"samples_alpha_1.png", "real_and_generated.png", "guidance_sweep.png"} <= set(files)
    for row, figures in alone.items():
        assert rows[row] == pytest.approx(figures, rel=1e-4)


def test_judges_are_of_one_process(tmp_path):
    config = typed({"run": {"name": "small", "steps": 1, "root": str(tmp_path)}}, ImagenetConfig)
    with pytest.raises(ConfigError, match="judge is measured by one process"):
        evaluation.Evaluation(config, {}, config.eval, tmp_path, tmp_path, World(torch.device("cpu"), 0, 2))
