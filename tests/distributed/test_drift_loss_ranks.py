"""Two ranks with uneven shares of the problems give the loss and gradients of one process. gloo, CPU."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, Sinkhorn

SHARES = (slice(0, 3), slice(3, 4))  # problems of rank 0 and rank 1
LOSSES = {
    "default": {},
    "floor 0, one temperature": {"temperatures": (0.3,), "field": MeanShift(floor=0.0)},
    "drift normalised only": {"normalize_features": False},
    "sinkhorn": {"field": Sinkhorn()},
}


def arguments(share: slice) -> dict[str, torch.Tensor]:
    """Four problems of very different scales: statistics of one rank alone would be far off."""
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 0.2, 3.0, 20.0])[:, None, None]
    blocks = {
        name: size * torch.randn(4, n, 5, generator=rng) for name, n in (("gen", 6), ("pos", 7), ("neg", 3), ("ref", 6))
    }
    blocks["neg_weight"] = torch.rand(4, 3, generator=rng) * 2
    blocks["self_ref"] = blocks.pop("ref")
    return {name: block[share] for name, block in blocks.items()}


def evaluate(share: slice, settings: dict, group: dist.ProcessGroup | None = None) -> dict[str, torch.Tensor]:
    """Sum over problems of the loss, its gradient, and the two statistics."""
    given = arguments(share)
    given["gen"].requires_grad_()
    terms = DriftLoss(**settings, process_group=group).terms(**given)
    terms.loss.sum().backward()
    return {
        "loss": terms.loss.detach(),
        "gradient": given["gen"].grad,
        "scale": terms.scale,
        "drift_rms": terms.drift_rms,
    }


def features(samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """Six features of three shapes, so that lots of several sets and of one exist."""
    views = {f"map{i}": (samples * i).sin()[:, None, : 3 + i % 2] for i in range(1, 5)}
    return views | {"narrow": samples[:, None, :2], "places": samples.unflatten(1, (5, 1)).expand(-1, -1, 3)}


def evaluate_features(share: slice, budget: int | None) -> dict[str, torch.Tensor]:
    """Sum over problems of the loss of several features, its gradient, the statistics, and how often ranks met."""
    given = arguments(share)
    given["gen"].requires_grad_()
    loss = FeatureDriftLoss(features, DriftLoss(), budget=budget)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
        total = loss(**given) * len(given["gen"])
    total.backward()
    terms = loss.terms(**given)
    statistics = {f"rms {key}": term.drift_rms for key, term in terms.items()}
    meetings = torch.tensor(float(reduce.call_count))
    return {"loss": total.detach()[None], "gradient": given["gen"].grad, "meetings": meetings, **statistics}


BUDGETS = {"one at a time": 1, "a few": 1500, "all": None}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = {name: evaluate(SHARES[rank], settings) for name, settings in LOSSES.items()}
    results |= {name: evaluate_features(SHARES[rank], budget) for name, budget in BUDGETS.items()}
    alone = [dist.new_group([r]) for r in range(2)][rank]
    results["alone"] = evaluate(SHARES[rank], {}, alone)
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two ranks computed."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_uneven_ranks_equal_one_process(ranks, name):
    whole = evaluate(slice(0, 4), LOSSES[name])
    for key in ("loss", "gradient"):
        joined = torch.cat([rank[name][key] for rank in ranks])
        torch.testing.assert_close(joined, whole[key], rtol=0, atol=1e-6 * float(whole[key].abs().max()))
    total = sum(rank[name]["loss"].sum() for rank in ranks)
    torch.testing.assert_close(total, whole["loss"].sum(), rtol=1e-6, atol=0)
    for key in ("scale", "drift_rms"):
        for rank in ranks:
            torch.testing.assert_close(rank[name][key], whole[key], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BUDGETS)
def test_features_in_any_number_of_lots_meet_twice_and_equal_one_process(ranks, name):
    whole = evaluate_features(slice(0, 4), None)
    gradient = torch.cat([rank[name]["gradient"] for rank in ranks])
    torch.testing.assert_close(gradient, whole["gradient"], rtol=0, atol=2e-6 * float(whole["gradient"].abs().max()))
    torch.testing.assert_close(sum(rank[name]["loss"] for rank in ranks), whole["loss"], rtol=1e-6, atol=0)
    for rank in ranks:
        assert rank[name]["meetings"] == 2
        for key in whole:
            if key.startswith("rms"):
                torch.testing.assert_close(rank[name][key], whole[key], rtol=1e-5, atol=0)


def test_a_group_of_its_own_makes_a_rank_independent(ranks):
    for rank, share in zip(ranks, SHARES, strict=True):
        own = evaluate(share, {})
        for key, value in own.items():
            torch.testing.assert_close(rank["alone"][key], value, rtol=1e-6, atol=0)
    apart = ranks[0]["alone"]["gradient"] - ranks[0]["default"]["gradient"]
    assert apart.abs().max() > 0.1 * ranks[0]["default"]["gradient"].abs().max()
