"""Interleaving, ratios within rounds and quartiles, on a clock that the test turns."""

import time

import pytest

from benchmarks.measure import interleave, quartiles, ratios, rounds_within, with_core_share


class Machine:
    """Calls that take a known time, on a machine whose speed may change between rounds."""

    def __init__(self, speeds):
        self.now, self.order, self.speeds = 0.0, [], speeds

    def call(self, name, seconds, of):
        def run():
            self.now += seconds / self.speeds[len(self.order) // of]
            self.order.append(name)

        return run

    def calls(self, **seconds):
        return {name: self.call(name, taken, len(seconds)) for name, taken in seconds.items()}


def test_every_call_runs_in_every_round_and_the_order_rotates():
    machine = Machine([1.0] * 4)
    seconds = interleave(machine.calls(a=1.0, b=2.0, c=4.0), 4, clock=lambda: machine.now)
    assert "".join(machine.order) == "abcbcacababc"
    assert seconds == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [4.0] * 4}


def test_a_slow_round_moves_times_but_not_ratios():
    machine = Machine([1.0, 0.25, 1.0, 0.5, 1.0])
    seconds = interleave(machine.calls(ours=2.0, theirs=3.0), 5, clock=lambda: machine.now)
    assert max(seconds["ours"]) == 8.0
    ratio = ratios(seconds, "ours")
    assert (ratio["theirs"].low, ratio["theirs"].median, ratio["theirs"].high) == (1.5, 1.5, 1.5)
    assert f"{ratio['ours']:.2f}" == "1.00 [1.00, 1.00]"


def test_quartiles_interpolate():
    found = quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert quartiles([0.0, 1.0]).low == 0.25


def test_waiting_lowers_the_share_of_the_core():
    result, share = with_core_share(lambda: time.sleep(0.05) or "done")
    assert result == "done"
    assert share < 0.5


@pytest.mark.parametrize(("budget", "expected"), [(0.0, 9), (20.0, 10), (1e9, 101)])
def test_rounds_fill_the_budget_between_bounds(budget, expected):
    machine = Machine([1.0])
    found = rounds_within(budget, machine.calls(a=1.0, b=1.0), clock=lambda: machine.now)
    assert found == expected
