"""Generated samples of one problem on several ranks: the loss and gradient of one process. gloo, CPU, 2 x 2 ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, Sinkhorn
from drifting.accumulation import backward_in_parts
from drifting.scales import Extent

LOSSES = {
    "default": {},
    "by sample": {"feature_extent": Extent.SAMPLE, "drift_extent": Extent.SAMPLE},
    "floor 0": {"field": MeanShift(floor=0.0), "temperatures": (0.3,)},
    "sinkhorn": {"field": Sinkhorn()},
}
ALL = slice(None)
PROBLEMS = (slice(0, 1), slice(1, 4))  # of the two halves of the ranks
SAMPLES = (slice(0, 3), slice(3, 6))  # of the two ranks of a half


def arguments(problems: slice, samples: slice, *, second_batch: bool) -> dict[str, torch.Tensor]:
    """Four problems of very different scales."""
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 0.2, 3.0, 20.0], dtype=torch.float64)[:, None, None]
    counts = {"gen": 6, "pos": 7, "neg": 3, "self_ref": 6}
    given = {name: size * torch.randn(4, n, 5, generator=rng, dtype=torch.float64) for name, n in counts.items()}
    given["neg_weight"] = torch.rand(4, 3, generator=rng, dtype=torch.float64)
    given["gen_weight"] = 0.5 + torch.rand(4, 6, generator=rng, dtype=torch.float64)
    if not second_batch:
        del given["self_ref"]
    shared = ("gen", "self_ref", "gen_weight")
    return {name: block[problems][:, samples] if name in shared else block[problems] for name, block in given.items()}


def evaluate(problems: slice, samples: slice, settings: dict, group: dist.ProcessGroup | None) -> dict:
    given = arguments(problems, samples, second_batch=isinstance(settings.get("field"), Sinkhorn))
    given["gen"].requires_grad_()
    terms = DriftLoss(**settings, shard_generated=group).terms(**given)
    terms.loss.sum().backward()
    return {
        "loss": terms.loss.detach(),
        "gradient": given["gen"].grad,
        "drift": terms.drift,
        "scale": terms.scale,
        "drift_rms": terms.drift_rms,
    }


class TwoFeatures(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"plain": x[:, None], "single": x[:, None].float().tanh()}


def gradient_in_parts(
    problems: slice, samples: slice, shared: dist.ProcessGroup | None, batch: dist.ProcessGroup | None
) -> torch.Tensor:
    """Of a factor on the samples, through two features of two float types, a problem at a time."""
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    given = arguments(problems, samples, second_batch=False)
    del given["gen_weight"]

    def part(b: int) -> dict[str, torch.Tensor]:
        own = {name: block[b : b + 1] for name, block in given.items()}
        return own | {"gen": factor * own["gen"]}

    loss = FeatureDriftLoss(TwoFeatures(), DriftLoss(shard_generated=shared, process_group=batch))
    backward_in_parts(loss, [lambda b=b: part(b) for b in range(len(given["gen"]))])
    return factor.grad


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 4), rank=rank, world_size=4)
    half, place = divmod(rank, 2)
    group = [dist.new_group([2 * h, 2 * h + 1]) for h in range(2)][half]
    own = PROBLEMS[half], SAMPLES[place]
    results = {name: evaluate(*own, settings, group) for name, settings in LOSSES.items()}
    results["parts"] = gradient_in_parts(*own, group, group)
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=4)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(4)]


def joined(ranks: list[dict], name: str, key: str) -> torch.Tensor:
    """A [B, G, D] whose problems and samples lie on four ranks."""
    halves = [torch.cat([ranks[2 * half + place][name][key] for place in range(2)], dim=1) for half in range(2)]
    return torch.cat(halves)


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_that_share_samples_equal_one_process(ranks, name):
    whole = evaluate(ALL, ALL, LOSSES[name], None)
    torch.testing.assert_close(joined(ranks, name, "drift"), whole["drift"], rtol=1e-12, atol=1e-12)
    # Each rank's loss is a mean over its own half of the samples.
    torch.testing.assert_close(joined(ranks, name, "gradient") / 2, whole["gradient"], rtol=1e-12, atol=1e-14)
    for half, problems in enumerate(PROBLEMS):
        mean = (ranks[2 * half][name]["loss"] + ranks[2 * half + 1][name]["loss"]) / 2
        torch.testing.assert_close(mean, whole["loss"][problems])
    for key in ("scale", "drift_rms"):
        for rank in ranks:
            torch.testing.assert_close(rank[name][key], whole[key])


def test_features_in_parts_equal_one_process(ranks):
    for half, problems in enumerate(PROBLEMS):
        whole = gradient_in_parts(problems, ALL, None, None)
        mean = (ranks[2 * half]["parts"] + ranks[2 * half + 1]["parts"]) / 2
        torch.testing.assert_close(mean, whole, rtol=1e-6, atol=0)  # one of the two features is single precision
