"""What does a sample cost in SampleQueue? Against the loops over samples that a first implementation writes.

python -m benchmarks.queue [--quick] [--budget SECONDS_PER_ROW] [--cpu CORE]
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.bar_chart import save_bars
from benchmarks.machine import facts, use_one_core
from benchmarks.measure import interleave, quartiles, ratios, rounds_within
from benchmarks.options import add_core, options
from benchmarks.report import print_table, save
from drifting import SampleQueue


class DequePerClass:
    """One deque per class, random.sample and torch.stack; samples are cloned, since a loader uses its batch again."""

    def __init__(self, num_classes: int, capacity: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.classes = [deque(maxlen=capacity) for _ in range(num_classes)]

    def push(self, samples: Tensor, labels: Tensor) -> None:
        for sample, label in zip(samples, labels.tolist(), strict=True):
            self.classes[label].append(sample.clone())

    def sample(self, labels: Tensor, n: int) -> Tensor:
        return torch.stack([torch.stack(random.sample(self.classes[label], n)) for label in labels.tolist()])


class SlotPerSample:
    """One tensor for all classes and a cursor per class, read and written sample by sample."""

    def __init__(self, num_classes: int, capacity: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.samples = torch.zeros(num_classes, capacity, *shape, dtype=dtype)
        self.capacity = capacity
        self.count, self.cursor = [0] * num_classes, [0] * num_classes

    def push(self, samples: Tensor, labels: Tensor) -> None:
        for sample, label in zip(samples, labels.tolist(), strict=True):
            self.samples[label, self.cursor[label]] = sample
            self.cursor[label] = (self.cursor[label] + 1) % self.capacity
            self.count[label] = min(self.count[label] + 1, self.capacity)

    def sample(self, labels: Tensor, n: int) -> Tensor:
        drawn = torch.empty(len(labels), n, *self.samples.shape[2:], dtype=self.samples.dtype)
        for row, label in zip(drawn, labels.tolist(), strict=True):
            for k, slot in enumerate(random.sample(range(self.count[label]), n)):
                row[k] = self.samples[label, slot]
        return drawn


LOOPS = {"deque per class": DequePerClass, "slot per sample": SlotPerSample}


@dataclass(frozen=True)
class Store:
    """Full queues of one size: K samples are pushed, n are drawn for each of B labels."""

    name: str
    num_classes: int
    capacity: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    pushes: tuple[int, ...]
    draws: tuple[tuple[int, int], ...]


STORES = (
    Store("latents", 1000, 128, (4, 32, 32), torch.float16, (64, 128, 4096), ((64, 64),)),
    Store("unconditional latents", 1, 1000, (4, 32, 32), torch.float16, (64,), ((64, 16), (64, 32))),
    Store("digits", 10, 128, (1, 8, 8), torch.float32, (64,), ((64, 64),)),
    Store("pixels", 10, 32, (3, 256, 256), torch.uint8, (64,), ((4, 16),)),
)
QUICK = (Store("quick", 10, 16, (2, 4, 4), torch.float16, (8,), ((4, 4),)),)


def batches(store: Store, size: int, most_bytes: int = 2**26) -> Iterator[tuple[Tensor, Tensor]]:
    """Random samples and labels, again and again; more than the caches hold where `most_bytes` allows."""
    g = torch.Generator().manual_seed(0)
    one = size * torch.Size(store.shape).numel() * store.dtype.itemsize
    made = [
        (
            torch.randint(256, (size, *store.shape), generator=g).to(store.dtype),
            torch.randint(store.num_classes, (size,), generator=g),
        )
        for _ in range(max(2, min(64, most_bytes // one)))
    ]
    return cycle(made)


def fill(queue: SampleQueue | DequePerClass | SlotPerSample, store: Store) -> None:
    """Push every class to its capacity, all classes in turn as a shuffled data set does, and once more in part."""
    samples, _ = next(batches(store, 64))
    labels = torch.arange(store.num_classes).repeat(store.capacity + 1)
    for part in labels.split(64):
        queue.push(samples[: len(part)], part)


def pushes(queues: dict, store: Store, size: int) -> dict[str, Callable[[], object]]:
    """One push of `size` samples by each queue; `plain copy` is the same bytes into memory in use."""

    def push(queue: object) -> Callable[[], object]:
        stream = batches(store, size)
        return lambda: queue.push(*next(stream))

    stream = batches(store, size)
    target = torch.zeros(size, *store.shape, dtype=store.dtype)
    return {name: push(queue) for name, queue in queues.items()} | {"plain copy": lambda: target.copy_(next(stream)[0])}


def draws(queues: dict, store: Store, rows: int, n: int) -> dict[str, Callable[[], object]]:
    """One draw of n samples for each of `rows` labels by each queue; `plain copy` as above."""

    def labels() -> Iterator[Tensor]:
        g = torch.Generator().manual_seed(1)
        return cycle([torch.randint(store.num_classes, (rows,), generator=g) for _ in range(64)])

    def draw(queue: object, **given: Tensor) -> Callable[[], object]:
        stream = labels()
        return lambda: queue.sample(next(stream), n, **given)

    out, source, target = (torch.zeros(rows, n, *store.shape, dtype=store.dtype) for _ in range(3))
    return (
        {"SampleQueue, out=": draw(queues["SampleQueue"], out=out)}
        | {name: draw(queue) for name, queue in queues.items()}
        | {"plain copy": lambda: target.copy_(source)}
    )


def measure(calls: dict[str, Callable[[], object]], images: int, budget: float, least: int) -> dict[str, dict]:
    """Per candidate: microseconds per image in every round, and the quartiles of its time over that of the first."""
    interleave(calls, 2)
    # One thread and no waiting: the processor's time is the work, and a neighbour on the same core does not count.
    seconds = interleave(calls, rounds_within(budget, calls, least=least), clock=time.process_time)
    relative = ratios(seconds, base=next(iter(calls)))
    return {
        name: {
            "us_per_image": [1e6 * one / images for one in times],
            "ratio_quartiles": [relative[name].low, relative[name].median, relative[name].high],
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = options(__doc__, "queue", quick="tiny sizes and three rounds")
    add_core(parser)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of measurement per operation")
    arguments = parser.parse_args()
    budget, least = (0.0, 3) if arguments.quick else (arguments.budget, 9)
    core = use_one_core(arguments.cpu)
    random.seed(0)

    results = {}
    for store in QUICK if arguments.quick else STORES:
        sizes = (store.num_classes, store.capacity, store.shape, store.dtype)
        queues = {"SampleQueue": SampleQueue(*sizes)} | {name: loop(*sizes) for name, loop in LOOPS.items()}
        for queue in queues.values():
            fill(queue, store)
        for size in store.pushes:
            calls = pushes(queues, store, size)
            results[f"{store.name}: push {size}"] = measure(calls, size, budget, least)
        for rows, n in store.draws:
            calls = draws(queues, store, rows, n)
            results[f"{store.name}: sample {rows} x {n}"] = measure(calls, rows * n, budget, least)

    table = []
    for operation, candidates in results.items():
        for name, figures in candidates.items():
            times, (low, middle, high) = figures["us_per_image"], figures["ratio_quartiles"]
            ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            table.append([operation, name, f"{min(times):.2f}", f"{median(times):.2f}", ratio, str(len(times))])
    machine = facts()
    print(f"commit {machine['commit']}, torch {machine['torch']}, {machine['cpu']}, core {core}, one thread")
    print(
        "us of processor time per image; ratio to the first line of each operation within a round: median [quartiles]\n"
    )
    print_table(["operation", "by", "min", "median", "ratio", "rounds"], table)
    stores = {store.name: repr(store) for store in (QUICK if arguments.quick else STORES)}
    draw_picture(results, save("queue", {"stores": stores, "results": results}, arguments.root))


def draw_picture(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Bars of microseconds per image, a group per operation."""
    names = list(dict.fromkeys(name for candidates in results.values() for name in candidates))
    times = {
        name: [quartiles(c[name]["us_per_image"]) if name in c else None for c in results.values()] for name in names
    }
    groups = [operation.replace(": ", "\n") for operation in results]
    panel = "processor time per image (us; median, lines: quartiles)"
    save_bars(path, groups, {panel: times}, title="A pushed or sampled image, one core")


if __name__ == "__main__":
    main()
