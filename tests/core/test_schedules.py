"""Schedules: their formulas, ends and refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting.schedules import exponential_anneal, linear_friction, sigmoid_switch

times = st.floats(0, 1e9)


def test_exponential_anneal_halves_in_ln_2_over_rate_and_stops_at_the_end():
    anneal = {"start": 0.8, "end": 0.1, "rate": 0.01}
    assert exponential_anneal(0, **anneal) == 0.8
    assert exponential_anneal(math.log(2) / 0.01, **anneal) == pytest.approx(0.4)
    assert exponential_anneal(math.log(8) / 0.01 - 1, **anneal) > 0.1
    assert exponential_anneal(math.log(8) / 0.01 + 1, **anneal) == exponential_anneal(1e300, **anneal) == 0.1
    assert exponential_anneal(7, start=0.3, end=0.1, rate=0) == 0.3


def test_linear_friction_is_a_straight_line_that_ends():
    assert [linear_friction(t, duration=10) for t in (0, 2.5, 10, 99)] == [1, 0.75, 0, 0]
    assert [linear_friction(t, duration=10, start=0.5, end=2.5) for t in (0, 5, 10, 99)] == [0.5, 1.5, 2.5, 2.5]


def test_sigmoid_switch_is_geometric_and_symmetric_about_its_center():
    switch = {"coarse": 0.8, "sharp": 0.05, "center": 500, "width": 20}
    assert sigmoid_switch(500, **switch) == pytest.approx(math.sqrt(0.8 * 0.05))
    for dt in (1, 30, 200):
        product = sigmoid_switch(500 - dt, **switch) * sigmoid_switch(500 + dt, **switch)
        assert product == pytest.approx(0.8 * 0.05)
    share = math.log(sigmoid_switch(530, **switch) / 0.8) / math.log(0.05 / 0.8)
    assert share == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert sigmoid_switch(0, **switch | {"width": 1e-3}) == pytest.approx(0.8)
    assert sigmoid_switch(1e12, **switch) == pytest.approx(0.05)


@given(times, times)
def test_schedules_are_monotone_and_keep_their_range(one, other):
    early, late = sorted((one, other))
    for schedule, low, high in (
        (lambda t: exponential_anneal(t, start=0.8, end=0.1, rate=1e-3), 0.1, 0.8),
        (lambda t: linear_friction(t, duration=1e4), 0, 1),
        (lambda t: sigmoid_switch(t, coarse=0.8, sharp=0.1, center=1e4, width=1e3), 0.1, 0.8),
    ):
        assert low * (1 - 1e-12) <= schedule(late) <= schedule(early) * (1 + 1e-12) <= high * (1 + 1e-12)
        assert isinstance(schedule(early), float)


def test_refusals():
    anneal = {"t": 0, "start": 0.8, "end": 0.1, "rate": 0.01}
    friction = {"t": 0, "duration": 10, "start": 1, "end": 0}
    switch = {"t": 0, "coarse": 0.8, "sharp": 0.1, "center": 5, "width": 2}
    for function, valid in ((exponential_anneal, anneal), (linear_friction, friction), (sigmoid_switch, switch)):
        for name in valid:
            for value in (-1.0, float("inf"), float("nan")):
                with pytest.raises(ValueError, match=rf"{function.__name__}: {name} must be finite and >= 0, got "):
                    function(**valid | {name: value})
    for bad in ({"end": 0}, {"end": 0.9}):
        with pytest.raises(ValueError, match=r"needs 0 < end <= start, got start=0\.8, end="):
            exponential_anneal(**anneal | bad)
    with pytest.raises(ValueError, match="duration must be > 0, got 0"):
        linear_friction(1, duration=0)
    for name in ("coarse", "sharp", "width"):
        with pytest.raises(ValueError, match="needs coarse, sharp, width > 0, got "):
            sigmoid_switch(**switch | {name: 0})
