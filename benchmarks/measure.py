"""Times that can be compared: every candidate in every round, the order rotated, ratios taken within a round.

A machine that slows down for a second slows the whole round; the ratio of two times of one round hardly notices.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import TypeVar

Call = Callable[[], object]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Quartiles:
    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def interleave(
    calls: Mapping[str, Call], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call in each round; round r starts with the r-th call. Warm the calls up before."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            calls[name]()
            seconds[name].append(clock() - began)
    return seconds


def rounds_within(
    budget: float,
    calls: Mapping[str, Call],
    *,
    least: int = 9,
    most: int = 101,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """How many rounds fill `budget` seconds, by one timed round, which warms up too."""
    once = sum(times[0] for times in interleave(calls, 1, clock=clock).values())
    return min(most, max(least, math.ceil(budget / once)))


def with_core_share(measurement: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and processor time over wall time: well below 1 means that others used the core meanwhile."""
    wall, processor = time.perf_counter(), time.process_time()
    result = measurement()
    return result, (time.process_time() - processor) / (time.perf_counter() - wall)


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, Quartiles]:
    """Quartiles over rounds of each candidate's time over that of `base` in the same round; above 1: base is faster."""
    return {
        name: quartiles([mine / other for mine, other in zip(times, seconds[base], strict=True)])
        for name, times in seconds.items()
    }


def quartiles(values: list[float]) -> Quartiles:
    """Quartiles of the values, interpolated linearly between them (two or more)."""
    return Quartiles(*quantiles(values, n=4, method="inclusive"))
