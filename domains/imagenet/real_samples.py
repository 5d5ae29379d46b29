"""Real samples for the drifting problems: shuffled epochs of a training set pushed through the queues (paper A.8)."""

from collections.abc import Mapping
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


class RealSamples:
    """The class queue and the unconditional queue, filled before the first step and refreshed every step.

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
        shape = tuple(data.images.shape[1:])
        self.epochs = ShuffledEpochs(len(data), seed)
        self.positives = SampleQueue(num_classes, per_class, shape, generator=torch.Generator().manual_seed(seed))
        self.unconditional = SampleQueue(1, unconditional, shape, generator=torch.Generator().manual_seed(seed + 1))
        while bool((self.positives.count < num_positive).any()) or int(self.unconditional.count) < num_unconditional:
            self.push(len(data))

    def push(self, n: int) -> None:
        """Push the next n real samples into both queues."""
        batch = self.data.subset(self.epochs.take(n))
        self.positives.push(batch.images, batch.labels)
        self.unconditional.push(batch.images, torch.zeros_like(batch.labels))

    def draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positives [B, P, C, H, W] of each label and unconditional samples [B, N, C, H, W]."""
        return (
            self.positives.sample(labels, self.num_positive),
            self.unconditional.sample(torch.zeros_like(labels), self.num_unconditional),
        )

    def state_dict(self) -> dict[str, Any]:
        """Both queues and the data position."""
        return {name: getattr(self, name).state_dict() for name in ("epochs", "positives", "unconditional")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for name in ("epochs", "positives", "unconditional"):
            getattr(self, name).load_state_dict(state[name])
