"""The noise that is executed on top of what an expert wants, so that demonstrations show how to come back."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

NOISE = 1  # the noise of episode `seed` is drawn from (seed, NOISE): its numbers are not the environment's


def executed_noise(seed: int, size: int, *, std: float, steps: float = 0.0) -> Iterator[NDArray[np.float64]]:
    """The noise of every control step of an episode, [size], in half ranges of the actions.

    With `steps` 0 it is white, of standard deviation `std`: the expert answers it at once and the hand stays on its
    path. A policy's errors last. With `steps` it forgets itself in so many steps (a first-order autoregression), and an
    episode's standard deviation is uniform in [0, 2 std]: some episodes show the path, others the way back from
    centimetres beside it.
    """
    draw = np.random.default_rng((seed, NOISE))
    strength = draw.uniform(0, 2 * std) if steps > 0 else std
    kept = np.exp(-1 / steps) if steps > 0 else 0.0
    noise = draw.standard_normal(size)
    while True:
        yield strength * noise
        noise = kept * noise + np.sqrt(1 - kept**2) * draw.standard_normal(size)
