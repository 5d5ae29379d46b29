"""Schedules of temperature and gain: pure functions of training time, one formula each.

    exponential_anneal   sigma(t) = max(end, start exp(-rate t))                 arXiv 2603.07514, 2603.09936
    linear_friction      gain(t) = start + (end - start) min(t / duration, 1)    after the friction of arXiv 2604.18194
    sigmoid_switch       tau(t) = coarse^(1 - s) sharp^s, s = sigmoid((t - center) / width)    after arXiv 2603.11984

t counts in any unit, steps or fractions of a run; rates, durations and widths are in the same. The training loop sets
the values: `loss.temperatures = (exponential_anneal(step, start=0.5, end=0.05, rate=1e-4),)`, `loss.gain = ...`.
A tuned constant is the baseline: in published comparisons it takes most of what a schedule gains.
"""

import math


def exponential_anneal(t: float, *, start: float, end: float, rate: float) -> float:
    """sigma(t) = max(end, start exp(-rate t)): wide first, so that far modes attract, then sharp.

    Args:
        t: >= 0.
        start: temperature at t = 0.
        end: smallest temperature, 0 < end <= start.
        rate: >= 0, per unit of t; ln(start / end) / rate is when the anneal ends.

    Raises:
        ValueError: an argument out of its range.
    """
    _check("exponential_anneal", t=t, start=start, end=end, rate=rate)
    if not 0 < end <= start:
        raise ValueError(f"exponential_anneal needs 0 < end <= start, got start={start}, end={end}")
    return max(end, start * math.exp(-rate * t))


def linear_friction(t: float, *, duration: float, start: float = 1.0, end: float = 0.0) -> float:
    """gain(t) = start + (end - start) min(t / duration, 1): the drift is braked, linearly, to a rest.

    Args:
        t: >= 0.
        duration: > 0; from then on the gain is `end`.
        start: gain at t = 0, >= 0.
        end: >= 0.

    Raises:
        ValueError: an argument out of its range.
    """
    _check("linear_friction", t=t, duration=duration, start=start, end=end)
    if duration == 0:
        raise ValueError("linear_friction: duration must be > 0, got 0; for a constant gain set it once")
    passed = min(t / duration, 1.0)
    return (1 - passed) * start + passed * end


def sigmoid_switch(t: float, *, coarse: float, sharp: float, center: float, width: float) -> float:
    """tau(t) = coarse^(1 - s) sharp^s with s = sigmoid((t - center) / width): a soft switch, geometric as scales are.

    Args:
        t: >= 0.
        coarse: temperature long before `center`, > 0.
        sharp: temperature long after it, > 0.
        center: time of the switch, >= 0; there the temperature is the geometric mean.
        width: > 0; 90 % of the way in log tau takes about 6 widths.

    Raises:
        ValueError: an argument out of its range.
    """
    _check("sigmoid_switch", t=t, coarse=coarse, sharp=sharp, center=center, width=width)
    if not (coarse > 0 and sharp > 0 and width > 0):
        raise ValueError(f"sigmoid_switch needs coarse, sharp, width > 0, got {coarse}, {sharp}, {width}")
    # tanh does not overflow for a switch long past or far ahead.
    s = 0.5 * (1 + math.tanh(0.5 * (t - center) / width))
    return math.exp((1 - s) * math.log(coarse) + s * math.log(sharp))


def _check(function: str, **values: float) -> None:
    """Refuse what is not finite and >= 0."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{function}: {name} must be finite and >= 0, got {value}")
