"""Averages against the recurrence in float64."""

import copy

import pytest
import torch
from torch import nn

from drifting.training.ema import Ema


def walk(net, steps=25):
    """Weights of `net` after random moves, one dict of float64 copies per step; `net` itself is moved."""
    for _ in range(steps):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
            net(torch.randn(16, 3))  # moves the batch norm's buffers
        yield {name: parameter.detach().double() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("warmup", [False, True])
def test_equals_the_recurrence_from_the_initial_weights(warmup):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(net, [0.0, 0.5, 0.999], warmup=warmup)
    expected = {d: {n: p.detach().double() for n, p in net.named_parameters()} for d in ema.decays}
    for n, weights in enumerate(walk(net)):
        ema.update(net)
        for decay, average in expected.items():
            d = min(decay, (1 + n) / (10 + n)) if warmup else decay
            for name, value in weights.items():
                average[name] = d * average[name] + (1 - d) * value
    for decay, average in expected.items():
        for name, parameter in ema.model(decay).named_parameters():
            torch.testing.assert_close(parameter.double(), average[name], rtol=1e-5, atol=1e-6)
    for ours, live in zip(ema.model(0.999).buffers(), net.buffers(), strict=True):
        assert torch.equal(ours, live)


def test_models_are_evaluated_and_share_nothing_with_the_live_one():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    ema = Ema(net, [0.9, 0.99])
    storages = [
        tensor.data_ptr()
        for module in (net, ema.model(0.9), ema.model(0.99))
        for tensor in module.state_dict().values()
    ]
    assert len(set(storages)) == len(storages)
    assert net.training
    assert not any(module.training for module in ema.model().modules())
    assert not any(parameter.requires_grad for parameter in ema.model().parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert ema.model() is ema.model(0.9)
    with pytest.raises(ValueError, match=r"decay must be one of \[0.9, 0.99\], got 0.5"):
        ema.model(0.5)


def test_continues_from_its_state():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(net, [0.9, 0.99], warmup=True)
    for _ in walk(net, 3):
        ema.update(net)
    other = Ema(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), [0.99, 0.9], warmup=True)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    ema.update(net)
    other.update(net)
    for decay in ema.decays:
        for ours, theirs in zip(ema.model(decay).parameters(), other.model(decay).parameters(), strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"decays \['0.5'\]"):
        Ema(net, [0.5]).load_state_dict(ema.state_dict())


@pytest.mark.parametrize("decays", [[], [1.0], [-0.1], [0.9, 0.9], [float("nan")]])
def test_impossible_decays_are_refused(decays):
    with pytest.raises(ValueError, match="decays must be one or more distinct numbers in"):
        Ema(nn.Linear(1, 1), decays)


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match=r"got torch.bfloat16 for weight"):
        Ema(nn.Linear(1, 1).bfloat16(), [0.9])
