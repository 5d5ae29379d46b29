"""The targets have the geometry of the paper's figures, and the coverage figures see it."""

import math

import pytest
import torch

from domains.toy.coverage import covered_regions, energy_distance, region_shares
from domains.toy.targets import TARGETS, Checkerboard, SwissRoll, TwoModes

ALL = {"two_modes": TwoModes(), **TARGETS}


@pytest.mark.parametrize("name", ALL)
def test_regions_are_equally_likely(name):
    target = ALL[name]
    points = target.draw(20_000, torch.Generator().manual_seed(0))
    assert points.shape == (20_000, 2)
    assert points.dtype == torch.float32
    shares = region_shares(target, points)
    torch.testing.assert_close(shares / shares.sum(), torch.full_like(shares, 1 / target.num_regions), rtol=0.1, atol=0)
    assert covered_regions(target, points) == target.num_regions


@pytest.mark.parametrize("name", ALL)
def test_draws_follow_the_generator(name):
    first, again, other = (ALL[name].draw(5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_modes_are_horizontally_elongated():
    target = TwoModes()
    points = target.draw(20_000, torch.Generator().manual_seed(0))
    for sign in (1, -1):
        mode = points[points[:, 1] * sign > 0]
        torch.testing.assert_close(mode.mean(0), torch.tensor([0.0, sign * 1.0]), rtol=0, atol=0.02)
        torch.testing.assert_close(mode.std(0), torch.tensor([0.5, 0.15]), rtol=0.03, atol=0)
    peak = target.density(torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.5, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(peak, torch.tensor([1.0, 1.0, math.exp(-0.5), 0.0]), rtol=1e-5, atol=1e-6)


def test_swiss_roll_winds_twice_from_the_centre_to_the_edge():
    clean = SwissRoll(noise=0.0).draw(5000, torch.Generator().manual_seed(0))
    assert clean.abs().max() <= 1
    assert clean.abs().max() > 0.99
    # radius = t / 4.5 pi, and the angle is t again: the spiral's equation
    t = clean.norm(dim=1) * 4.5 * math.pi
    torch.testing.assert_close(clean, clean.norm(dim=1, keepdim=True) * torch.stack([t.cos(), t.sin()], 1))
    assert t.min() >= math.pi / 2 - 1e-4
    assert t.max() <= 4.5 * math.pi + 1e-4
    assert SwissRoll().region(torch.tensor([[0.0, 1 / 9], [0.0, 1.0], [0.0, 0.8]])).tolist() == [0, 7, -1]


def test_checkerboard_has_eight_dark_squares():
    board = Checkerboard(noise=0.0)
    clean = board.draw(5000, torch.Generator().manual_seed(0))
    assert clean.min() >= -1
    assert clean.max() <= 1
    column, row = (clean * 2 + 2).floor().unbind(-1)
    assert set(((column + row) % 2).tolist()) == {0.0}
    assert len(set(zip(column.tolist(), row.tolist(), strict=True))) == 8
    assert torch.equal(region_shares(board, clean).sum(), torch.tensor(1.0))
    # one point per cell of the board, from the lower left: dark, light, dark, light / light, dark, ...
    corners = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1) / 2 - 0.75
    assert board.region(corners).tolist() == [0, -1, 1, -1, -1, 2, -1, 3, 4, -1, 5, -1, -1, 6, -1, 7]
    assert board.region(torch.tensor([[1.25, 0.25], [-1.25, 0.25]])).tolist() == [-1, -1]


def test_covered_regions_counts_those_with_half_their_share():
    half = torch.tensor([[0.0, 1.0]] * 74 + [[0.0, -1.0]] * 26)
    assert covered_regions(TwoModes(), half) == 2
    assert covered_regions(TwoModes(), torch.tensor([[0.0, 1.0]] * 76 + [[0.0, -1.0]] * 24)) == 1


def test_energy_distance_of_known_sets():
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(a, b) == pytest.approx(10.0)
    assert energy_distance(torch.cat([a, b]), torch.cat([b, a])) == pytest.approx(0.0, abs=1e-6)
    # 2 (2.5) - 0 - 2.5: one set has both points, the other one of them
    assert energy_distance(a, torch.cat([a, b])) == pytest.approx(2.5)
