"""Figure 3's claim: whatever the start, the particles end on both modes; and what it takes."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from domains.toy.config import ParticleConfig
from domains.toy.particles import STARTS, drift_particles
from drifting import MeanShift

SMALL = ParticleConfig(num=150)


@cache
def track(start, *, num=SMALL.num, temperature=SMALL.temperature, floor=SMALL.floor, repulsion=1.0, seed=0):
    config = replace(SMALL, num=num, temperature=temperature)
    return drift_particles(start, config, MeanShift(floor=floor, repulsion=repulsion), seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("start", STARTS)
def test_every_start_ends_on_both_modes(start, seed):
    end = track(start, seed=seed)
    assert end.positions.shape == (81, 150, 2)
    assert 0.35 <= end.upper_share <= 0.65
    assert end.distance < 1.5 * end.distance_real


def test_starts_are_what_their_names_say():
    first = {start: track(start).positions[0] for start in STARTS}
    assert first["between the modes"].norm(dim=1).max() < 0.8
    assert torch.cdist(first["far from both"], torch.tensor([[0.0, 1.0], [0.0, -1.0]])).min() > 1.5
    assert first["collapsed on one"][:, 1].min() > 0.3


def test_without_repulsion_the_particles_pile_up():
    """Attraction alone leaves both halves populated but shrinks them to points."""
    for start in STARTS:
        end = track(start, repulsion=0.0)
        assert end.distance > 10 * end.distance_real
        assert end.positions[-1][:, 0].std() < 0.1 * 0.5


def test_a_kernel_narrower_than_the_gap_leaves_the_collapse():
    end = track("collapsed on one", temperature=0.2)
    assert end.upper_share > 0.85


def test_a_floor_moves_more_than_a_narrow_kernel_does():
    """The released code's floor drags a collapsed start over to the empty mode, past the balance.

    The more samples, the smaller their affinities and the heavier the floor: with 150 the shares are nearly even.
    """
    end = track("collapsed on one", num=400, temperature=0.2, floor=1e-3)
    assert end.upper_share < 0.35


@pytest.mark.parametrize("key, value", [("num", 1), ("iterations", 0), ("temperature", 0.0), ("floor", -1.0)])
def test_refused_settings(key, value):
    with pytest.raises(ValueError, match=rf"particles\.{key} must be .*, got {value}"):
        replace(SMALL, **{key: value})
