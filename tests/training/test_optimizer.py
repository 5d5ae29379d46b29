"""The learning rate's values, clipping, and the refusal of non-finite steps."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from drifting.training.config import OptimConfig
from drifting.training.errors import NonFiniteError
from drifting.training.optimizer import build_optimizer, learning_rate, optimizer_step


@pytest.mark.parametrize(
    ("step", "value"), [(0, 1e-6), (1, 1e-6 + (4e-4 - 1e-6) / 4), (2, (4e-4 + 1e-6) / 2), (4, 4e-4), (99, 4e-4)]
)
def test_linear_warmup_then_constant(step, value):
    assert learning_rate(step, OptimConfig(lr=4e-4, warmup_steps=4), 100) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 1e-6),
        (10, 1.0),
        (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos(pi / 4)
        (60, 0.55),
        (110, 0.1),  # the last update
        (500, 0.1),
    ],
)
def test_cosine_runs_from_the_end_of_the_warmup_to_the_last_update(step, value):
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine", final_ratio=0.1)
    assert learning_rate(step, config, total_steps=111) == pytest.approx(value, rel=1e-12)


def test_cosine_of_a_single_step_is_defined():
    assert learning_rate(0, OptimConfig(lr=1.0, schedule="cosine", final_ratio=0.5), total_steps=1) == 0.5


def test_weight_decay_applies_to_every_parameter_and_frozen_ones_are_left_out():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    net[0].bias.requires_grad_(False)
    (group,) = build_optimizer(net, OptimConfig(lr=0.5, betas=(0.1, 0.2), eps=1e-3, weight_decay=0.3)).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 1e-3, 0.3)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        build_optimizer(nn.ReLU(), OptimConfig())


class Vector(nn.Module):
    """Two parameters; loss = sum(gradient * parameter) has just that gradient."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(torch.zeros(1))

    def loss(self, a, b):
        return (self.a * torch.tensor(a)).sum() + (self.b * torch.tensor(b)).sum()


def sgd_step(net, loss, *, clip_norm):
    optimizer = torch.optim.SGD(net.parameters(), lr=99.0)
    config = OptimConfig(lr=1.0, clip_norm=clip_norm)
    return optimizer_step(loss, net, optimizer, config, step=7, total_steps=100)


@pytest.mark.parametrize(("clip_norm", "factor"), [(6.5, 0.5), (26.0, 1.0), (None, 1.0)])
def test_gradient_is_clipped_by_its_global_norm(clip_norm, factor):
    net = Vector()
    norm = sgd_step(net, net.loss([3.0, 4.0], [12.0]), clip_norm=clip_norm)
    assert norm == 13.0  # before clipping
    torch.testing.assert_close(net.a.detach(), -factor * torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(net.b.detach(), -factor * torch.tensor([12.0]))


def test_gradients_do_not_accumulate_over_steps():
    net = Vector()
    for _ in range(2):
        assert sgd_step(net, net.loss([3.0, 4.0], [12.0]), clip_norm=None) == 13.0


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([1.0, 1.0], [float("nan")], "step 7: the loss is nan"),
        ([1e30, 0.0], [0.0], "every gradient is finite but their norm overflows"),
    ],
)
def test_non_finite_step_is_refused_before_anything_changes(a, b, said):
    net = Vector()
    optimizer = torch.optim.AdamW(net.parameters())
    with pytest.raises(NonFiniteError, match=said):
        optimizer_step(net.loss(a, b), net, optimizer, OptimConfig(), step=7, total_steps=100)
    assert not net.a.any()
    assert not net.b.any()
    assert not optimizer.state


def test_non_finite_gradient_of_a_finite_loss_names_the_parameter():
    net = Vector()
    loss = net.a.sum() + net.b.sqrt().sum()  # d sqrt(b) / db is infinite at b = 0
    assert torch.isfinite(loss)
    with pytest.raises(NonFiniteError, match=r"step 7: the loss is 0.0 but the gradient of b is not finite"):
        sgd_step(net, loss, clip_norm=1.0)
    assert not net.a.any()
    assert not net.b.any()


def test_loss_must_be_a_scalar():
    net = Vector()
    with pytest.raises(ValueError, match=r"scalar tensor of shape \(\), got \(2,\)"):
        sgd_step(net, net.a * 1.0, clip_norm=1.0)


class CountSynchronisations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


def test_one_host_synchronisation_per_step():
    net = Vector()
    loss = net.loss([3.0, 4.0], [12.0])
    with CountSynchronisations() as mode:
        sgd_step(net, loss, clip_norm=1.0)
    assert mode.count == 1
