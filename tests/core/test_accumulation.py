"""A batch in parts: loss, statistics and gradient of the batch in one piece."""

import copy

import pytest
import torch
from torch import nn

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, Sinkhorn
from drifting.accumulation import Repeated, backward_in_parts
from drifting.scales import Extent

SLICES = (slice(0, 3), slice(3, 4), slice(4, 6))
LOSSES = {
    "default": {},
    "low floor": {"field": MeanShift(floor=0.0), "temperatures": (0.3,)},
    "no drift normalisation": {"normalize_drift": False},
    "by problem": {"feature_extent": Extent.PROBLEM, "drift_extent": Extent.PROBLEM},
    "transport": {"field": Sinkhorn()},
}


def batch(width: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Six problems of very different scales: statistics of one part alone would be far off."""
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 0.2, 3.0, 20.0, 0.5, 7.0], dtype=dtype)[:, None, None]
    counts = {"noise": 5, "pos": 6, "neg": 3, "self_ref": 4}
    blocks = {name: size * torch.randn(6, n, width, generator=rng, dtype=dtype) for name, n in counts.items()}
    return blocks | {"neg_weight": 2 * torch.rand(6, 3, generator=rng, dtype=dtype)}


class TwoFeatures(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"plain": x[:, None], "pieces": x.unflatten(1, (2, -1)).tanh(), "square": x.square()[:, None]}


def without_second_batch(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: block for name, block in given.items() if name != "self_ref"}


def arguments(net: nn.Module, given: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    own = {name: block[rows] for name, block in given.items() if name != "noise"}
    return {"gen": net(given["noise"][rows]), **own}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("width", [6, 400], ids=["small", "wide"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_parts_give_the_gradient_of_one_piece(name, with_features, width, dtype):
    """In single precision the network's own products round differently, which temperature 0.02 magnifies: there the
    parts are as near to the gradient in double precision as the one piece is, on whatever machine."""
    torch.manual_seed(1)
    net, given = nn.Linear(width, width, dtype=dtype), batch(width, dtype)
    if name != "transport":
        given = without_second_batch(given)
    loss = DriftLoss(**LOSSES[name])
    if with_features:
        loss = FeatureDriftLoss(TwoFeatures(), loss, budget=1)  # a feature at a time

    exact = copy.deepcopy(net).double()
    loss(**arguments(exact, {key: block.double() for key, block in given.items()}, slice(0, 6))).backward()
    whole = loss(**arguments(net, given, slice(0, 6)))
    whole.backward()
    in_one_piece = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    value = backward_in_parts(loss, [lambda rows=rows: arguments(net, given, rows) for rows in SLICES])

    torch.testing.assert_close(value, whole.detach(), rtol=40 * torch.finfo(dtype).eps, atol=0)
    for parameter, gradient, right in zip(net.parameters(), in_one_piece, exact.parameters(), strict=True):
        rounding = (gradient.double() - right.grad).norm()
        assert (parameter.grad.double() - right.grad).norm() <= 2 * rounding + 1e-14 * right.grad.norm()


def test_statistics_of_a_part_alone_are_another_objective():
    torch.manual_seed(1)
    net, given, loss = nn.Linear(6, 6), without_second_batch(batch(6)), DriftLoss()
    backward_in_parts(loss, [lambda rows=rows: arguments(net, given, rows) for rows in SLICES])
    right = net.weight.grad.clone()
    net.zero_grad()
    for rows in SLICES:
        (loss(**arguments(net, given, rows)) * (rows.stop - rows.start) / 6).backward()
    assert (net.weight.grad - right).abs().max() > 0.1 * right.abs().max()


def test_repeated_draws_are_the_same_and_the_next_ones_new():
    torch.manual_seed(0)
    expected = torch.randn(2), torch.randn(3)
    torch.manual_seed(0)
    part = Repeated(lambda: {"gen": torch.randn(2)})
    first = part()["gen"]
    assert torch.equal(first, expected[0]) and torch.equal(torch.randn(3), expected[1])
    after = torch.get_rng_state()
    assert torch.equal(part()["gen"], first)
    assert torch.equal(torch.get_rng_state(), after)


def test_only_the_last_part_synchronises_gradients():
    entered = []

    class Context:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            return None

    net, given = nn.Linear(6, 6), without_second_batch(batch(6))
    parts = [lambda rows=rows: arguments(net, given, rows) for rows in SLICES]
    backward_in_parts(DriftLoss(), parts, unsynchronized=Context)
    assert len(entered) == 2


def test_no_part_is_refused():
    with pytest.raises(ValueError, match="parts must be one or more functions, got none"):
        backward_in_parts(DriftLoss(), [])
