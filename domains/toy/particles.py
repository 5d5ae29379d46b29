"""Fig. 3: free particles that follow the drifting field of two modes; no network is trained.

x <- x + step * V(x),    V from paper Alg. 2 with fresh samples of the target as positives
"""

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Generator, Tensor

from domains.toy.config import ParticleConfig
from domains.toy.coverage import energy_distance, region_shares
from domains.toy.targets import TwoModes
from drifting import MeanShift, drift_field

TARGET = TwoModes()
COMPARISONS = 10
STARTS = ("between the modes", "far from both", "collapsed on one")


@dataclass(frozen=True, slots=True)
class Track:
    """Particles of one start, and how they ended."""

    start: str
    positions: Tensor  # [iterations + 1, K, 2]
    upper_share: float  # share of the particles at the upper mode after the last iteration
    distance: float  # energy distance to as many samples of the target, mean over COMPARISONS draws
    distance_real: float  # the same between two draws


def initial_particles(start: str, num: int, generator: Generator) -> Tensor:
    """Particles before the first iteration, [num, 2]; `start` is one of STARTS."""
    if start == "collapsed on one":
        return TARGET.draw_mode(torch.zeros(num, dtype=torch.long), generator)
    centre = {"between the modes": (0.0, 0.0), "far from both": (2.5, 1.5)}[start]
    return torch.tensor(centre) + 0.15 * torch.randn(num, 2, generator=generator)


def drift_particles(start: str, config: ParticleConfig, field: MeanShift, seed: int) -> Track:
    """Move particles from `start` for `config.iterations`; the same seed gives the same particles and positives."""
    generator = torch.Generator().manual_seed(seed)
    particles = initial_particles(start, config.num, generator)
    positions = [particles]
    for _ in range(config.iterations):
        positive = TARGET.draw(config.num, generator)
        drift = drift_field(particles[None], positive[None], temperature=config.temperature, field=field)[0]
        particles = particles + config.step * drift
        positions.append(particles)
    draws = [TARGET.draw(config.num, generator) for _ in range(COMPARISONS + 1)]
    return Track(
        start=start,
        positions=torch.stack(positions),
        upper_share=region_shares(TARGET, particles)[0].item(),
        distance=fmean(energy_distance(particles, real) for real in draws[1:]),
        distance_real=fmean(energy_distance(one, other) for one, other in pairwise(draws)),
    )
