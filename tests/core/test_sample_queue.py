"""SampleQueue against one plain deque per class, and its draws against a uniform law."""

import copy
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import SampleQueue

CLASSES, CAPACITY = 3, 4


def queue(dtype: torch.dtype = torch.float32, seed: int = 0, **sizes) -> SampleQueue:
    sizes = {"num_classes": CLASSES, "capacity": CAPACITY, "sample_shape": (2,)} | sizes
    return SampleQueue(**sizes, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def numbered(numbers: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sample k is [k, k]."""
    return torch.tensor(numbers).to(dtype)[:, None].expand(-1, 2)


def contents(q: SampleQueue, label: int) -> list[int]:
    """All samples of one class, sorted."""
    drawn = q.sample(torch.tensor([label]), int(q.count[label]))[0]
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    return sorted(drawn[:, 0].int().tolist())


@given(pushes=st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=15), max_size=8))
def test_each_class_keeps_its_newest_samples(pushes):
    q, model, number = queue(), [deque(maxlen=CAPACITY) for _ in range(CLASSES)], 0
    for labels in pushes:
        numbers = list(range(number, number + len(labels)))
        number += len(labels)
        q.push(numbered(numbers), torch.tensor(labels, dtype=torch.int64))
        for label, k in zip(labels, numbers, strict=True):
            model[label].append(k)
        assert q.count.tolist() == [len(kept) for kept in model]
    for label, kept in enumerate(model):
        if kept:
            assert contents(q, label) == sorted(kept)


def test_one_push_of_more_than_the_capacity_keeps_the_newest():
    q = queue()
    q.push(numbered([100]), torch.tensor([1]))
    q.push(numbered(list(range(11))), torch.ones(11, dtype=torch.int64))
    assert contents(q, 1) == [7, 8, 9, 10]
    q.push(numbered([11, 12]), torch.ones(2, dtype=torch.int64))
    assert contents(q, 1) == [9, 10, 11, 12]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.int64])
def test_every_label_pushed_once_is_found_in_the_stored_type(dtype):
    q = queue(dtype, num_classes=50, capacity=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    q.push(numbered(order.tolist(), dtype), order)
    drawn = q.sample(torch.arange(50), 1)
    assert drawn.dtype == dtype and drawn.shape == (50, 1, 2)
    assert drawn[:, 0, 0].tolist() == list(range(50))


@pytest.mark.parametrize("shape", [(), (3, 4, 5)])
def test_samples_of_any_shape(shape):
    q = queue(sample_shape=shape)
    q.push(torch.arange(2.0).view(2, *[1] * len(shape)).expand(2, *shape), torch.tensor([0, 2]))
    assert q.sample(torch.tensor([2, 0, 2]), 1).shape == (3, 1, *shape)
    assert (q.sample(torch.tensor([2]), 1) == 1).all()


def filled(count: int = CAPACITY, seed: int = 0) -> SampleQueue:
    q = queue(seed=seed)
    for label in range(CLASSES):
        q.push(numbered([10 * label + k for k in range(count)]), torch.full((count,), label))
    return q


@pytest.mark.parametrize("count", [2, 4])
def test_draws_are_without_replacement_and_from_the_right_class(count):
    q, labels = filled(count), torch.tensor([2, 0, 0, 1] * 25)
    drawn = q.sample(labels, 2)[..., 0].int()
    assert (drawn // 10 == labels[:, None]).all()
    assert (drawn[:, 0] != drawn[:, 1]).all()


@pytest.mark.parametrize("count", [3, 4])
def test_draws_are_uniform(count):
    """Chi-square of the ordered pairs: its 99 % quantile is below the bound, three times the degrees of freedom."""
    drawn = filled(count).sample(torch.zeros(6000, dtype=torch.int64), 2)[..., 0].long()
    pairs = torch.bincount(drawn[:, 0] * CAPACITY + drawn[:, 1], minlength=CAPACITY**2).reshape(CAPACITY, CAPACITY)
    off_diagonal = pairs[:count, :count][~torch.eye(count, dtype=torch.bool)].double()
    assert pairs.diagonal().sum() == 0
    expected = 6000 / len(off_diagonal)
    assert ((off_diagonal - expected) ** 2 / expected).sum().item() < 3 * (len(off_diagonal) - 1)


def test_repeats_are_drawn_only_where_a_class_is_short():
    q = queue()
    q.push(numbered([0, 1, 10, 11, 12, 13]), torch.tensor([0, 0, 1, 1, 1, 1]))
    drawn = q.sample(torch.tensor([0, 1] * 500), 4, allow_repeats=True)[..., 0].int()
    short, full = drawn[0::2], drawn[1::2]
    assert set(short.flatten().tolist()) == {0, 1}
    assert short.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (full.sort(dim=1).values == torch.tensor([10, 11, 12, 13])).all()


def test_more_than_the_capacity_may_be_drawn_with_repeats():
    drawn = filled().sample(torch.tensor([1] * 200), 9, allow_repeats=True)
    assert drawn.shape == (200, 9, 2)
    assert set(drawn.flatten().int().tolist()) == {10, 11, 12, 13}


def test_draws_follow_the_generator_and_never_torchs_global_one():
    state = torch.get_rng_state()
    labels = torch.tensor([0, 1, 2] * 5)
    first = filled(seed=3).sample(labels, 3)
    assert torch.equal(first, filled(seed=3).sample(labels, 3))
    assert not torch.equal(first, filled(seed=4).sample(labels, 3))
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_generator_the_global_seed_decides():
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        q = SampleQueue(1, 50, ())
        q.push(torch.arange(50.0), torch.zeros(50, dtype=torch.int64))
        return q.sample(torch.tensor([0]), 10)

    with torch.random.fork_rng():
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))


def test_a_restored_queue_continues_as_if_undisturbed():
    original = filled(3)
    original.push(numbered([50, 51]), torch.tensor([1, 1]))
    original.sample(torch.tensor([0]), 2)
    state = copy.deepcopy(original.state_dict())
    restored = queue(seed=99)
    restored.push(numbered([7] * 9), torch.tensor([0] * 9))
    restored.load_state_dict(state)
    for step in range(3):
        for q in (original, restored):
            q.push(numbered([60 + step] * 3), torch.tensor([0, 1, 2]))
        labels = torch.tensor([2, 0, 1])
        assert torch.equal(original.sample(labels, 3), restored.sample(labels, 3))
    for name in ("samples", "count", "cursor"):
        assert torch.equal(getattr(original, name), getattr(restored, name))


def test_loading_copies():
    source, target = filled(), queue()
    target.load_state_dict(source.state_dict())
    source.push(numbered([99] * 4), torch.zeros(4, dtype=torch.int64))
    assert contents(target, 0) == [0, 1, 2, 3]


def test_a_batch_without_samples_changes_nothing():
    q = filled(2)
    q.push(numbered([]), torch.zeros(0, dtype=torch.int64))
    assert q.count.tolist() == [2, 2, 2]
    assert q.sample(torch.zeros(0, dtype=torch.int64), 2).shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: q.sample(torch.tensor([0, 1, 2]), 1), LookupError, r"no samples yet of classes \[2\]"),
        (lambda q: q.sample(torch.tensor([2]), 1, allow_repeats=True), LookupError, r"no samples yet of classes \[2\]"),
        (lambda q: q.sample(torch.tensor([0, 1]), 2), LookupError, r"classes \[1\] hold fewer than n=2.*allow_repeats"),
        (lambda q: q.sample(torch.tensor([0]), 5), LookupError, r"classes \[0\] hold fewer than n=5"),
        (lambda q: q.sample(torch.tensor([3]), 1), ValueError, r"labels must lie in 0\.\.2, got \[3\]"),
        (lambda q: q.sample(torch.tensor([-1]), 1), ValueError, r"labels must lie in 0\.\.2, got \[-1\]"),
        (lambda q: q.sample(torch.tensor(1), 1), ValueError, r"labels must be int64 \[K\], got torch.int64 \(\)"),
        (lambda q: q.sample(torch.tensor([1.0]), 1), ValueError, "labels must be int64.*torch.float32"),
        (lambda q: q.push(numbered([1]), torch.tensor([3])), ValueError, r"labels must lie in 0\.\.2, got \[3\]"),
        (lambda q: q.push(numbered([1, 2]), torch.tensor([0])), ValueError, r"K=1, S=\(2,\), got \(2, 2\)"),
        (lambda q: q.push(torch.zeros(1, 3), torch.tensor([0])), ValueError, r"samples must be .* got \(1, 3\)"),
        (lambda q: q.push(numbered([1]).double(), torch.tensor([0])), ValueError, "samples must be torch.float32"),
        (lambda q: queue(num_classes=0), ValueError, "num_classes and capacity must be >= 1, got 0 and 4"),
        (lambda q: queue(capacity=0), ValueError, "num_classes and capacity must be >= 1, got 3 and 0"),
        (lambda q: queue(capacity=5).load_state_dict(q.state_dict()), ValueError, r"state\['samples'\] must be"),
        (lambda q: queue(torch.uint8).load_state_dict(q.state_dict()), ValueError, "torch.uint8 .*got torch.float32"),
        (lambda q: q.load_state_dict({}), ValueError, r"state must have the entries \['count', 'cursor'"),
        (lambda q: q.load_state_dict({**q.state_dict(), "more": 1}), ValueError, "got .*'more'"),
    ],
)
def test_refusals_name_what_is_wrong(call, error, message):
    q = queue()
    q.push(numbered([0, 1, 2]), torch.tensor([0, 0, 1]))
    with pytest.raises(error, match=message):
        call(q)


def test_a_refused_push_leaves_the_queue_as_it_was():
    q = filled(2)
    with pytest.raises(ValueError):
        q.push(numbered([1, 2]), torch.tensor([0, 3]))
    assert contents(q, 0) == [0, 1]
