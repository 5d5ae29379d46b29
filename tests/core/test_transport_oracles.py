"""The Sinkhorn field against two libraries of optimal transport: plans of POT, gradients of GeomLoss."""

import geomloss
import ot
import pytest
import torch
from field_formulas import clouds, direct_drift

from drifting import Sinkhorn
from drifting.fields.sinkhorn import distance_cost, half_squared_distance, transport_plan


def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[:, :, None] - y[:, None]).norm(dim=-1)


@pytest.mark.parametrize("cost", [half_squared_distance, distance_cost])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_plan_is_pots(cost, temperature):
    x, y = clouds(6, 8)
    weight = 0.2 + torch.rand(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = cost(distance(x, y))
    ours = transport_plan(costs, weight, temperature=temperature, iterations=20000, tolerance=1e-13).matrix
    for b in range(2):
        masses = (weight[b] / weight[b].sum()).numpy()
        theirs = ot.sinkhorn(
            [1 / 6] * 6, masses, costs[b].numpy(), temperature, "sinkhorn_log", numItermax=20000, stopThr=1e-13
        )
        torch.testing.assert_close(ours[b], 6 * torch.from_numpy(theirs), rtol=1e-8, atol=1e-12)


def geomloss_drift(
    x: torch.Tensor, *, debias: bool, epsilon: float, scaling: float, **targets: torch.Tensor
) -> torch.Tensor:
    """-G d/dx of GeomLoss's cost to `pos`, minus that to `ref` if any; eps = blur^2, cost |x - y|^2 / 2."""
    transport = geomloss.SamplesLoss(
        "sinkhorn", p=2, blur=epsilon**0.5, debias=debias, scaling=scaling, backend="tensorized"
    )
    moving = x.clone().requires_grad_()
    signs = {"pos": 1, "ref": -1}
    (slope,) = torch.autograd.grad(sum(signs[k] * transport(moving, y).sum() for k, y in targets.items()), moving)
    return -x.shape[1] * slope


def assert_tends_to(drift: torch.Tensor, theirs: list[torch.Tensor]) -> None:
    """GeomLoss anneals eps and ends where the anneal does: its error falls like 1 - scaling, from .99 to .999."""
    coarse, fine = ((drift - other).abs().max().item() for other in theirs)
    assert fine < 2e-3 * drift.abs().max().item()
    assert fine < 0.2 * coarse


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_field_is_minus_geomlosss_gradient(epsilon):
    """OT_eps(x, y) - OT_eps(x, x')."""
    x, y, ref = clouds(6, 8, 7)
    drift = direct_drift(Sinkhorn(5000, tolerance=1e-12), x, y, self_ref=ref, temperature=epsilon)
    assert_tends_to(
        drift,
        [
            geomloss_drift(x, debias=False, epsilon=epsilon, scaling=scaling, pos=y, ref=ref)
            for scaling in (0.99, 0.999)
        ],
    )


def test_with_the_samples_as_their_own_second_batch_it_is_the_sinkhorn_divergence():
    """OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2, whose self term moves by both arguments."""
    x, y = clouds(6, 8)
    drift = direct_drift(Sinkhorn(5000, tolerance=1e-12), x, y, self_ref=x, temperature=1.0)
    assert_tends_to(
        drift, [geomloss_drift(x, debias=True, epsilon=1.0, scaling=scaling, pos=y) for scaling in (0.99, 0.999)]
    )
