"""Real samples for the drifting problems: shuffled epochs of a training set pushed through the queues (paper A.8)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.data.read_ahead import ReadAhead
from domains.imagenet.data.shuffled_epochs import ShuffledEpochs
from drifting import SampleQueue
from drifting.training.draws import stream
from drifting.training.world import World

FILL_BATCH = 1024  # samples read at once before the first step


class RealSamples:
    """The class queue and the unconditional queue, filled before the first step and refreshed every step.

    Filling reads what fits into them, for which a run that goes on has no use: `fill` comes after loading, or the first
    push or draw does it.

    Queues hold samples as the data set stores them (pixels: uint8, a quarter of float32), or, with `holds` "indices",
    only where they lie in the data set: each draw reads them again, with flips and crops of its own. At 1000 classes of
    128 images of 256 x 256 that is 1 MB instead of 25 GB, for a data set that is read quickly in any order.

    With `ranks` above 1 the queues are this rank's own: of every push each rank takes another part. Otherwise they are
    the same wherever they are filled with the same seed.

    Raises:
        DataError: a class without images, or with fewer than the positives of one problem.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        num_classes: int,
        per_class: int,
        unconditional: int,
        num_positive: int,
        num_unconditional: int,
        seed: int,
        holds: str = "samples",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check_enough(data, num_classes, num_positive, num_unconditional)
        self.data, self.seed = data, seed
        self.num_positive, self.num_unconditional = num_positive, num_unconditional
        self.rank, self.ranks = rank, ranks
        self.newest_labels = data.labels[:0]  # of the last push
        self.pushes = 0
        self.indices_only = holds == "indices"
        shape: tuple[int, ...] = () if self.indices_only else data.sample_shape
        dtype = torch.int64 if self.indices_only else data.dtype
        self.epochs = ShuffledEpochs(len(data), seed)
        self._coming = ReadAhead(self.epochs, self._own, self._stored)
        self.positives = SampleQueue(num_classes, per_class, shape, dtype, torch.Generator().manual_seed(seed))
        self.unconditional = SampleQueue(1, unconditional, shape, dtype, torch.Generator().manual_seed(seed + 1))
        self.filled = False

    @classmethod
    def of(cls, config: ImagenetConfig, data: ImageData, world: World) -> "RealSamples":
        """The queues of a run on this rank."""
        queue, drift = config.queue, config.drift
        own = queue.owner == "rank"
        return cls(
            data,
            num_classes=len(data.classes),
            per_class=queue.per_class,
            unconditional=queue.unconditional,
            num_positive=drift.num_positive,
            num_unconditional=drift.num_unconditional,
            seed=config.run.seed,
            holds=queue.holds,
            rank=world.problem_share if own else 0,
            ranks=world.problem_shares if own else 1,
        )

    def push(self, n: int) -> None:
        """Push the next n real samples into both queues; with queues of its own, every rank n others.

        The n after them are read in a thread meanwhile.
        """
        self.fill()
        indices, samples = self._coming.take(n * self.ranks, self.pushes + 1)
        self.pushes += 1
        self.newest_labels = self.data.labels[indices]
        self.positives.push(samples, self.newest_labels)
        self.unconditional.push(samples, torch.zeros_like(self.newest_labels))

    def draw(self, labels: Tensor, streams: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Positives [B, P, C, H, W] of each label and unconditional samples [B, N, C, H, W], stored as the data are.

        `streams`, one for each label, make every problem's draw its own; None draws from the queues' generators.
        """
        self.fill()
        unlabelled = torch.zeros_like(labels)
        drawn = (
            _draw(self.positives, labels, self.num_positive, streams),
            _draw(self.unconditional, unlabelled, self.num_unconditional, streams),
        )
        if not self.indices_only:
            return drawn
        sources = [self.positives.generator] * len(labels) if streams is None else streams
        positives, unconditional = (
            torch.stack([self.data.read(rows, source) for rows, source in zip(block, sources, strict=True)])
            for block in drawn
        )
        return positives, unconditional

    def _own(self, indices: Tensor) -> Tensor:
        n = len(indices) // self.ranks
        return indices[n * self.rank : n * (self.rank + 1)]

    def _stored(self, indices: Tensor, number: int) -> Tensor:
        """What the queues keep of the samples at `indices`; each `number` draws flips and crops of its own."""
        return indices if self.indices_only else self.data.read(indices, stream(self.seed, "read", number, self.rank))

    def fill(self) -> None:
        """Fill both queues with random samples, what they would keep of one epoch; once in a run."""
        if self.filled:
            return
        self.filled = True
        order = [self.epochs.take(len(self.data)) for _ in range(self.ranks)][self.rank]
        labels = self.data.labels[order]
        by_class = [order[labels == label][-self.positives.capacity :] for label in range(self.positives.num_classes)]
        self._fill_queue(self.positives, torch.cat(by_class), self.data.labels)
        self._fill_queue(self.unconditional, order[-self.unconditional.capacity :], torch.zeros_like(self.data.labels))

    def _fill_queue(self, queue: SampleQueue, chosen: Tensor, labels: Tensor) -> None:
        batches = chosen.split(FILL_BATCH)
        for part in tqdm(batches, desc="filling the queues", unit="batch", disable=len(batches) < 8):
            self.pushes += 1
            queue.push(self._stored(part, self.pushes), labels[part])

    @property
    def saved_once(self) -> bool:
        """Whether every rank holds the same queues, so that a checkpoint needs those of one."""
        return self.ranks == 1

    def state_dict(self) -> dict[str, Any]:
        """Both queues, the data position, and whose they are."""
        parts = {name: getattr(self, name).state_dict() for name in ("positives", "unconditional")}
        parts["epochs"] = self._coming.state_dict()
        data = {"fingerprint": self.data.fingerprint}
        return parts | {"owner": {"rank": self.rank}, "pushes": self.pushes, "filled": self.filled, "data": data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken; raises ValueError for other data."""
        self._continue(state)
        for name in ("positives", "unconditional"):
            getattr(self, name).load_state_dict(state[name])

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: queues that are a rank's own are dealt anew (`drifting.dealing`)."""
        if self.ranks == 1 and len({state["owner"]["rank"] for state in states}) == 1:
            self.load_state_dict(states[0])
            return
        self._continue(states[0])
        own = {state["owner"]["rank"]: state for state in states}  # ranks that share samples hold the same queues
        for name in ("positives", "unconditional"):
            saved = [own[number][name] for number in sorted(own)]
            getattr(self, name).load_state_dicts(saved, rank=self.rank, ranks=self.ranks)

    def _continue(self, state: Mapping[str, Any]) -> None:
        if state["data"]["fingerprint"] != self.data.fingerprint:
            raise ValueError("the run began with other training data; restore them or choose another run.name")
        self.pushes, self.filled = int(state["pushes"]), bool(state["filled"])
        self._coming.load_state_dict(state["epochs"])


def _check_enough(data: ImageData, num_classes: int, num_positive: int, num_unconditional: int) -> None:
    held = torch.bincount(data.labels, minlength=num_classes)
    if len(held) > num_classes:
        raise DataError(f"the data have {len(held)} classes, the generator only {num_classes}")
    if short := [f"{label} ({int(count)})" for label, count in enumerate(held) if count < num_positive]:
        listed = ", ".join(short[:10]) + (f", ... ({len(short)} classes)" if len(short) > 10 else "")
        raise DataError(
            f"classes with fewer than drift.num_positive={num_positive} images: {listed}. "
            "Add images, lower drift.num_positive, or lower the generator's num_classes."
        )
    if len(data) < num_unconditional:
        raise DataError(f"drift.num_unconditional={num_unconditional} is more than the {len(data)} images there are")


def _draw(queue: SampleQueue, labels: Tensor, n: int, streams: Sequence[torch.Generator] | None) -> Tensor:
    """n distinct samples of each label [B], [B, n, *S]; of label b by stream b."""
    held = queue.count[labels]
    if streams is None or bool((held < n).any()):
        return queue.sample(labels, n)  # which refuses a class that holds fewer
    # One call for all problems: the n smallest of random keys of the filled slots.
    keys = torch.stack([torch.rand(queue.capacity, generator=stream) for stream in streams])
    keys.masked_fill_(torch.arange(queue.capacity) >= held[:, None], 2.0)
    slots = keys.topk(n, largest=False).indices
    rows = (labels[:, None] * queue.capacity + slots).flatten()
    return queue.samples.flatten(0, 1).index_select(0, rows).view(*slots.shape, *queue.samples.shape[2:])
