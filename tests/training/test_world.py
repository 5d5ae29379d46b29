"""Shares of the work: nothing lost, nothing twice, and weights under which means over ranks are means over all."""

import pytest
import torch

from drifting.training.errors import ConfigError
from drifting.training.world import World

CPU = torch.device("cpu")


def worlds(size, shared=1):
    return [World(CPU, rank, size, shard_generated=shared) for rank in range(size)]


@pytest.mark.parametrize(
    ("total", "size", "shared"), [(5, 4, 1), (7, 3, 1), (8, 4, 1), (4, 4, 1), (5, 4, 2), (3, 4, 4)]
)
def test_problems_are_divided_without_loss_and_weights_give_the_mean(total, size, shared):
    values = torch.randn(total, dtype=torch.float64)
    ranks = worlds(size, shared)
    held = [list(range(total))[world.own(total)] for world in ranks]
    assert [row for rows in held[::shared] for row in rows] == list(range(total))
    for first in range(0, size, shared):
        assert all(rows == held[first] for rows in held[first : first + shared])
    sizes = [len(rows) for rows in held]
    assert max(sizes) - min(sizes) <= 1
    mean = sum(world.weight(total) * values[world.own(total)].mean() for world in ranks) / size
    torch.testing.assert_close(mean, values.mean())


def test_neighbouring_ranks_share_generated_samples():
    parts = [list(range(8))[world.own_samples(8)] for world in worlds(4, shared=2)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert worlds(2)[1].own_samples(8) == slice(0, 8)


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"drift.classes_per_step must be at least 4, one problem for each .* got 3"):
        worlds(4)[0].own(3, "drift.classes_per_step")
    with pytest.raises(ConfigError, match=r"samples must be a multiple of parallel.shard_generated = 2, got 5"):
        worlds(4, shared=2)[0].own_samples(5, "samples")


def test_a_process_alone_prints_averages_and_ends_without_any_exchange(capsys):
    world = World(CPU)
    world.say("hello")
    World(CPU, 1, 2).say("not me")
    assert capsys.readouterr().out == "hello\n"
    assert world.mean({"a": torch.tensor(3.0)}, weight=1.0) == {"a": torch.tensor(3.0)}
    world.refuse_differences(torch.nn.Linear(1, 1))
    world.finish()
