"""Regions, their nesting, throughput and MFU; a loop of its own, and what the timing costs."""

import time

import pytest
import torch
from torch import nn

from drifting import DriftLoss, FeatureDriftLoss
from drifting.training import step_timer
from drifting.training.step_timer import StepTimer

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(step_timer.time, "perf_counter", clock.perf_counter)
    return clock


def test_regions_are_means_over_steps_and_the_rest_is_other(clock):
    timer = StepTimer(CPU)
    for data, backward in ((1, 4), (3, 4)):
        with timer.region("data"):
            clock.now += data
        with timer.region("backward"):
            clock.now += backward
        clock.now += 0.5
        timer.step(64)
    figures = timer.figures()
    assert figures["seconds_per_step"] == 6.5
    assert figures["images_per_second"] == 64 / 6.5
    assert {name: value for name, value in figures.items() if name.startswith("time/")} == {
        "time/data": 2.0,
        "time/backward": 4.0,
        "time/other": 0.5,
    }


def test_a_region_is_not_charged_what_its_inner_regions_are(clock):
    timer = StepTimer(CPU)

    def encode(x):
        clock.now += 2
        with timer.region("communication"):
            clock.now += 0.25
        return x

    encode = timer.wrap("encoder", encode)
    with timer.region("loss"):
        clock.now += 1
        assert encode(5) == encode(x=5) == 5
    timer.step(1)
    figures = timer.figures()
    assert (figures["time/loss"], figures["time/encoder"], figures["time/communication"]) == (1, 4, 0.5)
    assert figures["time/other"] == 0


def test_figures_start_anew(clock):
    timer = StepTimer(CPU)
    with timer.region("data"):
        clock.now += 8
    timer.step(1)
    timer.figures()
    clock.now += 1
    timer.step(10)
    figures = timer.figures()
    assert figures["images_per_second"] == 10
    assert "time/data" not in figures
    assert timer.figures() == {}  # no step since


def test_an_error_closes_the_regions_it_leaves(clock):
    timer = StepTimer(CPU)
    with pytest.raises(KeyError), timer.region("loss"):
        timer.begin("communication")
        clock.now += 3
        raise KeyError
    with timer.region("data"):
        clock.now += 1
    timer.step(1)
    figures = timer.figures()
    assert (figures["time/communication"], figures["time/loss"], figures["time/data"]) == (3, 0, 1)


def test_mfu_needs_flops_and_a_peak(clock):
    for flops, peak, expected in ((6e9, 1e9, 2.0), (6e9, None, None), (None, 1e9, None)):
        timer = StepTimer(CPU, flops=flops, peak=peak)
        clock.now += 3
        timer.step(1)
        assert timer.figures().get("mfu") == expected


def test_process_memory_covers_what_was_touched():
    timer = StepTimer(CPU)
    held = torch.ones(2**24)  # 64 MiB
    timer.step(1)
    assert timer.figures()["peak_memory_gib"] * 2**30 > held.nbytes


class Squares(nn.Module):
    def forward(self, x):
        return {"a": x.square()[:, None], "b": x.tanh()[:, None]}


def test_the_split_of_a_real_step_adds_up_and_the_loss_is_unchanged():
    timer = StepTimer(CPU)
    net = nn.Linear(8, 16)
    plain = FeatureDriftLoss(Squares(), DriftLoss())
    timed = FeatureDriftLoss(timer.wrap("encoder", Squares()), DriftLoss())
    for _ in range(3):
        with timer.region("data"):
            real, noise = torch.randn(4, 32, 16), torch.randn(4, 32, 8)
        gen = net(noise)
        with timer.region("loss"):
            loss = timed(gen, real)
        with timer.region("backward"):
            loss.backward()
        timer.step(128)
        assert loss.item() == plain(gen, real).item()
    figures = timer.figures()
    parts = {name: value for name, value in figures.items() if name.startswith("time/")}
    assert parts.keys() == {"time/data", "time/encoder", "time/loss", "time/backward", "time/other"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(figures["seconds_per_step"])


def test_five_regions_cost_less_than_a_percent_of_a_20_ms_step():
    timer = StepTimer(CPU)
    steps, best = 200, float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in range(steps):
            for name in ("data", "encoder", "loss", "backward", "communication"):
                with timer.region(name):
                    pass
            timer.step(1)
        timer.figures()
        best = min(best, (time.process_time() - began) / steps)
    assert best < 200e-6
