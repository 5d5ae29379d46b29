"""Real samples for the drifting problems: shuffled epochs of a training set pushed through the queues (paper A.8)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from domains.imagenet.digits import LabelledImages
from drifting import SampleQueue
from drifting.training.errors import TrainingError


class DataError(TrainingError):
    """Training data that cannot serve the drifting problems asked for."""


class ShuffledEpochs:
    """Indices 0 .. size - 1 in random order, again and again; every index once per epoch.

    Its own generator and position are its state, so that a continued run sees the same order.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(size, generator=self.generator)
        self.position = 0

    def take(self, n: int) -> Tensor:
        """The next n indices, [n]; an epoch's end may lie within."""
        parts = []
        while n > 0:
            if self.position == len(self.order):
                self.order = torch.randperm(len(self.order), generator=self.generator)
                self.position = 0
            part = self.order[self.position : self.position + n]
            self.position += len(part)
            n -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Order, position and generator."""
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; refuses the order of a data set of another size."""
        if len(state["order"]) != len(self.order):
            raise ValueError(f"state is of {len(state['order'])} samples, the data set has {len(self.order)}")
        self.order, self.position = state["order"].clone(), int(state["position"])
        self.generator.set_state(state["generator"])

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: all follow one order."""
        self.load_state_dict(states[0])


class RealSamples:
    """The class queue and the unconditional queue, filled before the first step and refreshed every step.

    With `ranks` above 1 the queues are this rank's own: of every push each rank takes another part. Otherwise they are
    the same wherever they are filled with the same seed.

    Raises:
        DataError: a class without images, or with fewer than the positives of one problem.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        num_classes: int,
        per_class: int,
        unconditional: int,
        num_positive: int,
        num_unconditional: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        held = torch.bincount(data.labels, minlength=num_classes)
        if len(held) > num_classes:
            raise DataError(f"the data have {len(held)} classes, the generator only {num_classes}")
        if short := [f"{label} ({int(count)})" for label, count in enumerate(held) if count < num_positive]:
            raise DataError(
                f"classes with fewer than drift.num_positive={num_positive} images: {', '.join(short)}. "
                "Add images, lower drift.num_positive, or lower the generator's num_classes."
            )
        self.data = data
        self.num_positive, self.num_unconditional = num_positive, num_unconditional
        self.rank, self.ranks = rank, ranks
        self.newest_labels = data.labels[:0]  # of the last push
        shape = tuple(data.images.shape[1:])
        self.epochs = ShuffledEpochs(len(data), seed)
        self.positives = SampleQueue(num_classes, per_class, shape, generator=torch.Generator().manual_seed(seed))
        self.unconditional = SampleQueue(1, unconditional, shape, generator=torch.Generator().manual_seed(seed + 1))
        while bool((self.positives.count < num_positive).any()) or int(self.unconditional.count) < num_unconditional:
            self.push(len(data))

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W."""
        return self.positives.samples.shape[2:]

    def push(self, n: int) -> None:
        """Push the next n real samples into both queues; with queues of its own, every rank n others."""
        own = self.epochs.take(n * self.ranks)[n * self.rank : n * (self.rank + 1)]
        batch = self.data.subset(own)
        self.newest_labels = batch.labels
        self.positives.push(batch.images, batch.labels)
        self.unconditional.push(batch.images, torch.zeros_like(batch.labels))

    def draw(self, labels: Tensor, streams: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Positives [B, P, C, H, W] of each label and unconditional samples [B, N, C, H, W].

        `streams`, one for each label, make every problem's draw its own; None draws from the queues' generators.
        """
        unlabelled = torch.zeros_like(labels)
        return (
            _draw(self.positives, labels, self.num_positive, streams),
            _draw(self.unconditional, unlabelled, self.num_unconditional, streams),
        )

    def state_dict(self) -> dict[str, Any]:
        """Both queues, the data position, and whose they are."""
        parts = {name: getattr(self, name).state_dict() for name in ("epochs", "positives", "unconditional")}
        return parts | {"owner": {"rank": self.rank}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for name in ("epochs", "positives", "unconditional"):
            getattr(self, name).load_state_dict(state[name])

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: queues that are a rank's own are dealt anew (`drifting.dealing`)."""
        if self.ranks == 1 and len({state["owner"]["rank"] for state in states}) == 1:
            self.load_state_dict(states[0])
            return
        own = {state["owner"]["rank"]: state for state in states}  # ranks that share samples hold the same queues
        self.epochs.load_state_dict(states[0]["epochs"])
        for name in ("positives", "unconditional"):
            saved = [own[number][name] for number in sorted(own)]
            getattr(self, name).load_state_dicts(saved, rank=self.rank, ranks=self.ranks)


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
