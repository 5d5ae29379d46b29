"""Two ranks: NaN of one rank is named on both, waiting for a rank counts as communication. gloo, CPU."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drifting import DriftLoss, FeatureDriftLoss
from drifting.training.communication_time import time_reduction, timed_collectives
from drifting.training.errors import NonFiniteError
from drifting.training.nonfinite_report import naming_features
from drifting.training.step_timer import StepTimer

TAUS = (0.05, 0.2)
PAUSE = 0.3


class Views(nn.Module):
    """Feature b is NaN where the first coordinate is large."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x[:, None], "b": (x * torch.where(x[:, :1] > 100, torch.nan, 1.0))[:, None]}


def report(rank: int, spoilt: str) -> str:
    """The error that this rank gets when samples of rank 1 alone are bad."""
    rng = torch.Generator().manual_seed(rank)
    samples = {name: torch.randn(2, 6, 5, generator=rng) for name in ("gen", "pos", "neg")}
    if rank == 1:
        samples[spoilt][1, 3, 0] = 1000
    terms = FeatureDriftLoss(Views(), DriftLoss(TAUS)).terms(**samples)
    try:
        with naming_features(lambda: [terms], TAUS):
            raise NonFiniteError("step 7:")
    except NonFiniteError as error:
        return str(error)


def split(rank: int, slow: str) -> dict[str, float]:
    """Time split of a step for which rank 1 is late in one region; the gradient, too."""
    torch.manual_seed(0)
    timer, net = StepTimer(torch.device("cpu")), nn.Linear(5, 5)
    ddp = DistributedDataParallel(net)
    time_reduction(ddp, timer)
    loss_function = DriftLoss(TAUS)
    torch.manual_seed(rank)
    gen, pos = ddp(torch.randn(2, 6, 5)), torch.randn(2, 6, 5)
    dist.barrier()
    with timed_collectives(timer):
        with timer.region("loss"):
            time.sleep(PAUSE * (slow == "loss" and rank == 1))
            loss = loss_function(gen, pos)
        with timer.region("backward"):
            time.sleep(PAUSE * (slow == "backward" and rank == 1))
            loss.backward()
            timer.begin("update")
            time.sleep(0.05)
            timer.end()
    timer.step(24)
    return timer.figures() | {"gradient": net.weight.grad.clone()}


def plain_gradient(rank: int) -> torch.Tensor:
    torch.manual_seed(0)
    net = nn.Linear(5, 5)
    ddp = DistributedDataParallel(net)
    torch.manual_seed(rank)
    DriftLoss(TAUS)(ddp(torch.randn(2, 6, 5)), torch.randn(2, 6, 5)).backward()
    return net.weight.grad


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    all_reduce = dist.all_reduce
    results = {
        "reports": {spoilt: report(rank, spoilt) for spoilt in ("gen", "pos", "neg")},
        "splits": {slow: split(rank, slow) for slow in ("loss", "backward")},
        "plain": plain_gradient(rank),
        "restored": dist.all_reduce is all_reduce,
    }
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("spoilt", "samples"), [("gen", "generated"), ("pos", "positive")])
def test_every_rank_names_the_feature_and_the_rank_with_the_bad_samples(ranks, spoilt, samples):
    expected = f"step 7: Not finite: feature b (all temperatures), from {samples} features on rank 1."
    assert [rank["reports"][spoilt] for rank in ranks] == [expected] * 2


def test_bad_extra_negatives_are_what_remains(ranks):
    first, second = (rank["reports"]["neg"] for rank in ranks)
    assert first == second
    assert first.endswith("finite on every rank: extra negatives, or an overflow.")


def test_waiting_for_a_slow_rank_is_communication_and_not_the_region_around_it(ranks):
    for region in ("loss", "backward"):
        fast, slow = (rank["splits"][region] for rank in ranks)
        assert fast["time/communication"] > 0.8 * PAUSE
        assert fast[f"time/{region}"] < 0.5 * PAUSE
        assert slow[f"time/{region}"] > 0.8 * PAUSE
        assert slow["time/communication"] < 0.5 * PAUSE


def test_the_timed_reduction_is_the_modules_own_and_ends_with_the_backward_pass(ranks):
    for rank in ranks:
        for found in rank["splits"].values():
            torch.testing.assert_close(found["gradient"], rank["plain"], rtol=0, atol=0)
            assert found["time/update"] >= 0.05  # not charged to the communication before it
        assert rank["restored"]
