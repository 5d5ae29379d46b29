"""Queues of K ranks dealt to L ranks: nothing lost, newest first, shares equal; what it gives is a working queue."""

import itertools

import pytest
import torch

from drifting import SampleQueue
from drifting.dealing import deal_queue, derived_seed


def filled(ranks, pushes, *, classes=3, capacity=4):
    """One queue per rank after some pushes; a sample says when (hundreds), where (tens) and of which class it is."""
    queues = [SampleQueue(classes, capacity, (2,), generator=torch.Generator().manual_seed(r)) for r in range(ranks)]
    for time, (rank, queue) in itertools.product(range(1, pushes + 1), enumerate(queues)):
        labels = torch.arange(classes)[rank % classes :]  # ranks hold different numbers of a class
        queue.push((100.0 * time + 10 * rank + labels)[:, None].expand(-1, 2), labels)
    return [queue.state_dict() for queue in queues]


def dealt(states, ranks, capacity=4):
    queues = []
    for rank in range(ranks):
        queue = SampleQueue(3, capacity, (2,))
        queue.load_state_dict(deal_queue(states, rank=rank, ranks=ranks, capacity=capacity))
        queues.append(queue)
    return queues


def oldest_first(queue, label):
    """Samples in the order in which pushes will overwrite them."""
    count, cursor = int(queue.count[label]), int(queue.cursor[label])
    slots = [(cursor - count + i) % queue.capacity for i in range(count)]
    return [float(queue.samples[label, slot, 0]) for slot in slots]


@pytest.mark.parametrize("old", [1, 2, 3, 4])
@pytest.mark.parametrize("new", [1, 2, 3, 4])
@pytest.mark.parametrize("pushes", [1, 3, 7])
def test_nothing_is_lost_and_the_newest_stay(old, new, pushes):
    states = filled(old, pushes)
    queues = dealt(states, new)
    for label in range(3):
        before = [float(x) for s in states for x in s["samples"][label, : int(s["count"][label]), 0]]
        after = [x for queue in queues for x in oldest_first(queue, label)]
        assert len(after) == len(set(after)) == min(len(before), 4 * new)
        times = sorted((x // 100 for x in before), reverse=True)[: 4 * new]
        assert sorted((x // 100 for x in after), reverse=True) == times
        sizes = [int(queue.count[label]) for queue in queues]
        assert max(sizes) - min(sizes) <= 1
        for queue in queues:
            held = [x // 100 for x in oldest_first(queue, label)]
            assert held == sorted(held)


def test_remainders_do_not_all_go_to_one_rank():
    queues = dealt(filled(1, 1), 3)  # one sample of each of three classes
    assert [int(queue.count.sum()) for queue in queues] == [1, 1, 1]


def test_pushes_go_on_as_if_the_queue_had_always_been_there():
    (queue,) = dealt(filled(2, 3), 1, capacity=8)
    assert oldest_first(queue, 0) == [100, 200, 300]  # rank 1 has none of class 0
    assert oldest_first(queue, 1) == [111, 101, 211, 201, 311, 301]
    for time in (4, 5, 6):
        queue.push(torch.full((1, 2), 100.0 * time + 1), torch.tensor([1]))
    assert oldest_first(queue, 1) == [101, 211, 201, 311, 301, 401, 501, 601]


def test_a_smaller_capacity_keeps_the_newest():
    (queue,) = dealt(filled(2, 3), 1, capacity=2)
    assert oldest_first(queue, 1) == [311, 301]
    assert int(queue.cursor[1]) == 0


def test_old_ranks_draw_on_and_new_ones_draw_something_else():
    states = filled(2, 2)
    generators = [deal_queue(states, rank=r, ranks=4, capacity=4)["generator"] for r in range(4)]
    assert torch.equal(generators[0], states[0]["generator"])
    assert torch.equal(generators[1], states[1]["generator"])
    assert len({tuple(state.tolist()) for state in generators}) == 4
    again = [deal_queue(states, rank=r, ranks=4, capacity=4)["generator"] for r in range(4)]
    assert all(map(torch.equal, generators, again))
    seeds = {derived_seed([state["generator"] for state in states], rank) for rank in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_queue_takes_its_share_by_itself():
    states = filled(3, 2)
    queue = SampleQueue(3, 4, (2,))
    queue.load_state_dicts(states, rank=1, ranks=2)
    (_, expected) = dealt(states, 2)
    assert [oldest_first(queue, label) for label in range(3)] == [oldest_first(expected, label) for label in range(3)]


def test_what_does_not_fit_together_is_refused():
    states = filled(2, 1)
    with pytest.raises(ValueError, match=r"number 0 is .* \(3, 4, 2\), number 1 is .* \(4, 4, 2\)"):
        deal_queue([states[0], filled(1, 1, classes=4)[0]], rank=0, ranks=2, capacity=4)
    for wrong in ({"rank": 2, "ranks": 2}, {"rank": 0, "ranks": 0}, {"rank": -1, "ranks": 1}):
        with pytest.raises(ValueError, match=f"rank={wrong['rank']}, ranks={wrong['ranks']}"):
            deal_queue(states, capacity=4, **wrong)
    with pytest.raises(ValueError, match="0 states"):
        deal_queue([], rank=0, ranks=1, capacity=4)
    with pytest.raises(ValueError, match="capacity=0"):
        deal_queue(states, rank=0, ranks=1, capacity=0)
