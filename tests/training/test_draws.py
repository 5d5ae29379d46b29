"""Draws that belong to a step and a problem."""

import torch

from drifting.training.draws import seed_of, stream


def test_a_draw_is_a_function_of_its_name_alone():
    torch.manual_seed(0)
    first = torch.randn(5, generator=stream(3, "noise", 7, 2))
    torch.manual_seed(1)
    stream(3, "noise", 7, 1)
    assert torch.equal(torch.randn(5, generator=stream(3, "noise", 7, 2)), first)


def test_every_part_of_the_name_counts():
    names = [(3, "noise", 7, 2), (4, "noise", 7, 2), (3, "real", 7, 2), (3, "noise", 8, 2), (3, "noise", 7, 3)]
    drawn = torch.stack([torch.randn(1000, generator=stream(*name)) for name in names])
    assert (torch.corrcoef(drawn) - torch.eye(5)).abs().max() < 0.15


def test_items_of_a_step_never_share_what_the_cpu_generator_keeps_of_a_seed():
    seeds = [seed_of(0, "noise", 11, item) for item in range(10_000)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_of_neighbouring_items_are_independent():
    means = torch.stack([torch.randn(64, generator=stream(0, "noise", 0, item)).mean() for item in range(2000)])
    assert abs(float(means.std()) * 8 - 1) < 0.1
    lagged = torch.corrcoef(torch.stack([means[1:], means[:-1]]))[0, 1]
    assert abs(float(lagged)) < 0.1
