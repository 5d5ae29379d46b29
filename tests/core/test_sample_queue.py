"""SampleQueue against one plain deque per class, and its draws against a uniform law."""

import copy
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting import SampleQueue
from drifting.queue import distinct_slots, random_slots

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["8 bytes", "16 bytes"])
@given(pushes=st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=15), max_size=8))
def test_each_class_keeps_its_newest_samples(pushes, dtype):
    q, model, number = queue(dtype), [deque(maxlen=CAPACITY) for _ in range(CLASSES)], 0
    for labels in pushes:
        numbers = list(range(number, number + len(labels)))
        number += len(labels)
        q.push(numbered(numbers, dtype), torch.tensor(labels, dtype=torch.int64))
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


def test_no_slot_is_written_twice_in_one_push(monkeypatch):
    """Which of two writes to one slot comes last is for torch to choose."""
    written = []
    monkeypatch.setattr("drifting.queue.write_rows", lambda store, index, rows: written.extend(index.tolist()))
    queue().push(numbered(list(range(15))), torch.tensor([2, 0, 2, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 2]))
    assert sorted(written) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]


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


def test_every_bit_pattern_is_kept():
    """Samples are copied in wide words of another type, infinities and NaN of every kind among them."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(16, 8, 512)
    q = queue(torch.float16, num_classes=16, capacity=1, sample_shape=(8, 512))
    q.push(bits.view(torch.float16), torch.arange(16))
    assert torch.equal(q.sample(torch.arange(16), 1)[:, 0].view(torch.int16), bits)


@pytest.mark.parametrize("layout", ["one element in", "every other column", "of 3 bytes", "with a gradient"])
def test_samples_of_any_layout(layout):
    samples = {
        "one element in": torch.arange(33.0)[1:].view(2, 16),
        "every other column": torch.arange(64.0).view(2, 32)[:, ::2],
        "of 3 bytes": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "with a gradient": torch.arange(6.0, requires_grad=True).view(2, 3),
    }[layout]
    q = queue(samples.dtype, sample_shape=samples.shape[1:])
    q.push(samples, torch.tensor([2, 0]))
    drawn = q.sample(torch.tensor([2, 0]), 1)[:, 0]
    assert torch.equal(drawn, samples) and not drawn.requires_grad


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


@pytest.mark.parametrize(("count", "n"), [(19, 2), (20, 2), (23, 2), (30, 3)])
def test_every_tuple_of_distinct_slots_is_as_likely_as_another(count, n):
    """Both ways to draw, below and from ten slots per draw. Chi-square: five standard deviations about its mean."""
    rows = 100_000
    slots = distinct_slots(torch.full((rows,), count), n, torch.Generator().manual_seed(0))
    assert slots.shape == (rows, n)
    digits = count ** torch.arange(n)
    observed = torch.bincount((slots * digits).sum(dim=1), minlength=count**n).double()
    possible = torch.cartesian_prod(*[torch.arange(count)] * n)
    distinct = (possible.sort(dim=1).values.diff(dim=1) != 0).all(dim=1)
    codes = (possible[distinct] * digits).sum(dim=1)
    assert observed[codes].sum() == rows
    expected, freedom = rows / len(codes), len(codes) - 1
    chi_square = ((observed[codes] - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("counts", "n"), [((1000, 160, 401), 16), ((128, 64, 99), 64), ((7, 100, 3), 3)])
def test_draws_from_classes_of_any_size_are_distinct_and_reach_every_slot(counts, n):
    """The mean of the draws: within six standard deviations."""
    count = torch.tensor(counts * 1000)
    slots = distinct_slots(count, n, torch.Generator().manual_seed(0))
    assert (slots.sort(dim=1).values.diff(dim=1) > 0).all()
    for row, size in enumerate(counts):
        own = slots[row :: len(counts)]
        assert own.unique().tolist() == list(range(size))
        assert own.double().mean().item() == pytest.approx((size - 1) / 2, abs=6 * size / (12 * own.numel()) ** 0.5)


def test_draws_with_repeats_are_uniform():
    slots = random_slots(torch.tensor([5, 7]).repeat_interleave(7000), torch.Generator().manual_seed(0))
    for own, size in zip(slots.view(2, -1), (5, 7), strict=True):
        expected = 7000 / size
        assert ((torch.bincount(own, minlength=size) - expected) ** 2 / expected).sum().item() < 3 * (size - 1)


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


@pytest.mark.parametrize("count", [2, 4])
def test_out_holds_what_a_new_tensor_would(count):
    q, twin = filled(count), filled(count)
    out = torch.full((3, 2, 2), -1.0)
    for labels in (torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0])):
        assert q.sample(labels, 2, out=out) is out
        assert torch.equal(out, twin.sample(labels, 2))
    assert out.data_ptr() == q.sample(labels, 2, out=out).data_ptr()


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_samples_go_to_the_cpu_by_any_of_its_names(device):
    labels = torch.tensor([2, 0, 1])
    drawn = filled().sample(labels, 2, device=device)
    assert drawn.device.type == "cpu" and torch.equal(drawn, filled().sample(labels, 2))


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
        (lambda q: q.push(torch.zeros(1, 2, device="meta"), torch.tensor([0])), ValueError, "on the CPU .* on meta"),
        (
            lambda q: q.sample(torch.tensor([0], device="meta"), 1),
            ValueError,
            r"labels must lie .*meta; pass labels.cpu",
        ),
        (lambda q: q.sample(torch.tensor([0]), -1), ValueError, "n must be >= 0, got -1"),
        (
            lambda q: q.sample(torch.tensor([0]), 1, out=torch.zeros(1, 2)),
            ValueError,
            r"out .*\(1, 1, 2\).* got .*\(1, 2\)",
        ),
        (lambda q: q.sample(torch.tensor([0]), 1, out=torch.zeros(1, 1, 2).half()), ValueError, "got torch.float16"),
        (lambda q: q.sample(torch.tensor([0]), 1, out=torch.zeros(1, 1, 4)[..., ::2]), ValueError, "not contiguous"),
        (
            lambda q: q.sample(torch.tensor([0]), 1, out=torch.zeros(1, 1, 2, device="meta")),
            ValueError,
            "got .*on meta",
        ),
        (lambda q: q.sample(torch.tensor([0]), 1, device="meta", out=torch.zeros(1, 1, 2)), ValueError, "pass one of"),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: queue(pin_memory=True), "pin_memory=True needs CUDA.* leave it False"),
        (lambda q: q.sample(torch.tensor([0]), 1, device="cuda:1"), "device='cuda:1' needs CUDA.* leave it None"),
    ],
)
def test_without_cuda_nothing_is_drawn_for_it(call, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    q = filled()
    before = q.generator.get_state()
    with pytest.raises(ValueError, match=message):
        call(q)
    assert torch.equal(before, q.generator.get_state())


class LazyStream:
    """A CUDA stream at its laziest: what is queued happens when something waits for it, and not before."""

    def __init__(self, device: object = None):
        self.device, self.queued, self.done = torch.device("cuda", 0), [], 0

    def run(self, until: int | None = None) -> None:
        until = len(self.queued) if until is None else until
        while self.done < until:
            self.done += 1
            self.queued[self.done - 1]()

    def wait_event(self, event: "LazyEvent") -> None:
        stream, until = event.recorded
        self.queued.append(lambda: stream.run(until))


class LazyEvent:
    recorded = None

    def record(self, stream: LazyStream) -> None:
        self.recorded = stream, len(stream.queued)

    def synchronize(self) -> None:
        if self.recorded:
            stream, until = self.recorded
            stream.run(until)


class DeviceTensor(torch.Tensor):
    """A tensor of the simulated device: `stream` is where it was allocated, `users` whom its memory waits for."""

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.stream.queued.append(lambda: torch.Tensor.copy_(self, source))

    def record_stream(self, stream):
        self.users.append(stream)


@pytest.fixture
def lazy_cuda(monkeypatch):
    """CUDA as `SampleQueue` sees it, on the CPU and late; `current` is the stream that computes."""
    cuda = SimpleNamespace(current=LazyStream(), sent=[], pinned=[])

    @contextmanager
    def on(stream):
        before, cuda.current = cuda.current, stream
        yield
        cuda.current = before

    def empty(*shape, dtype, pin_memory=False, device=None):
        made = torch.empty(*shape, dtype=dtype)
        if pin_memory:
            cuda.pinned.append(made)
            return made
        made = made.as_subclass(DeviceTensor)
        made.stream, made.users = cuda.current, []
        cuda.sent.append(made)
        return made

    for name, simulated in {
        "is_available": lambda: True,
        "current_stream": lambda device: cuda.current,
        "stream": on,
        "Stream": LazyStream,
        "Event": LazyEvent,
    }.items():
        monkeypatch.setattr(torch.cuda, name, simulated)
    monkeypatch.setattr("drifting.row_copies.torch", SimpleNamespace(cuda=torch.cuda, empty=empty))
    return cuda


def pinned_queue() -> SampleQueue:
    q = queue(pin_memory=True)
    q.load_state_dict(filled().state_dict())
    return q


def test_copies_that_come_late_bring_what_was_drawn(lazy_cuda):
    """Were a buffer filled before its last copy, or the consumer not told to wait, it would see other samples."""
    q, twin, consumer, seen = pinned_queue(), filled(), lazy_cuda.current, []
    for rows in (2, 3, 1, 3, 3, 2, 3):
        labels = torch.arange(rows)
        drawn = q.sample(labels, 2, device="cuda").view(rows, 2, 2)
        expected = twin.sample(labels, 2)
        consumer.queued.append(lambda drawn=drawn, expected=expected: seen.append((drawn.clone(), expected)))
    consumer.run()
    assert len(seen) == 7 and all(torch.equal(drawn, expected) for drawn, expected in seen)


def test_copies_overlap_with_compute_and_leave_its_memory_alone(lazy_cuda):
    q, consumer = pinned_queue(), lazy_cuda.current
    consumer.queued.append(lambda: pytest.fail("a copy waited for compute that was queued before it"))
    for _ in range(5):
        q.sample(torch.tensor([0, 1]), 2, device="cuda")
    for sent in lazy_cuda.sent:
        assert sent.stream is not consumer  # memory that compute may still read is not written
        assert sent.users == [consumer]  # nor is this memory, by the next copies, before compute has read it
    lazy_cuda.sent[-1].stream.run()


def test_two_buffers_of_one_draw_are_all_that_is_pinned(lazy_cuda):
    q = pinned_queue()
    for _ in range(9):
        q.sample(torch.tensor([0, 1]), 2, device="cuda")
    assert sorted(len(buffer) for buffer in lazy_cuda.pinned) == [0, 0, 4, 4]
    assert not q.sample(torch.tensor([0]), 1).is_pinned() and len(lazy_cuda.sent) == 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: copies to one are only simulated")
@pytest.mark.parametrize("pin_memory", [False, True])
def test_samples_reach_a_cuda_device(pin_memory):
    size = {"num_classes": 8, "capacity": 64, "sample_shape": (4, 32, 32)}
    q, twin = queue(**size, pin_memory=pin_memory), queue(**size)
    samples = torch.randn(512, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    for each in (q, twin):
        each.push(samples, torch.arange(8).repeat(64))
    drawn = []
    for step in range(20):
        torch.cuda._sleep(10**7)  # compute that is still under way when the next draw is copied
        drawn.append(q.sample(torch.arange(8), 16 + step, device="cuda") + 1)
    for step, sums in enumerate(drawn):
        assert torch.equal(sums.cpu(), twin.sample(torch.arange(8), 16 + step) + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: copies to one are only simulated")
def test_a_copy_to_a_cuda_device_does_not_wait_for_compute():
    q = pinned_queue()
    labels = torch.tensor([0, 1])
    q.sample(labels, 2, device="cuda")  # pins its memory: that alone may wait for the device
    q.sample(labels, 2, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(10**10)  # seconds
    for _ in range(3):  # the third waits for the copy of the first
        q.sample(labels, 2, device="cuda")
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
