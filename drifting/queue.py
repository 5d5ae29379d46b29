"""SampleQueue: the newest samples of every class, first in first out (paper A.8).

Positives come from one queue with a class per label, unconditional negatives from another with a single class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class SampleQueue:
    """Ring buffers of real samples, one per class; push and sample without a Python loop over samples.

    Args:
        num_classes: C.
        capacity: samples kept per class.
        sample_shape: shape S of one sample.
        dtype: storage type; uint8 for pixels saves three quarters of the memory.
        generator: source of the draws, saved and restored with the queue; None makes one, seeded from torch's global
            generator.

    Raises:
        ValueError: no class or no capacity.
    """

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        sample_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        if num_classes < 1 or capacity < 1:
            raise ValueError(f"num_classes and capacity must be >= 1, got {num_classes} and {capacity}")
        self.samples = torch.zeros(num_classes, capacity, *sample_shape, dtype=dtype)
        self.count = torch.zeros(num_classes, dtype=torch.int64)  # samples held
        self.cursor = torch.zeros(num_classes, dtype=torch.int64)  # slot of the next push
        self.generator = _fresh_generator() if generator is None else generator

    @property
    def num_classes(self) -> int:
        """C."""
        return self.samples.shape[0]

    @property
    def capacity(self) -> int:
        """Samples kept per class."""
        return self.samples.shape[1]

    def push(self, samples: Tensor, labels: Tensor) -> None:
        """Append samples in order; each class keeps its newest `capacity`.

        Args:
            samples: [K, *S] in the queue's dtype.
            labels: [K], int64.

        Raises:
            ValueError: shapes, types or labels that do not fit.
        """
        self._check_labels(labels)
        if samples.shape != (len(labels), *self.samples.shape[2:]):
            raise ValueError(
                f"samples must be [K, *S] with K={len(labels)}, S={tuple(self.samples.shape[2:])}, "
                f"got {tuple(samples.shape)}"
            )
        if samples.dtype != self.samples.dtype:
            raise ValueError(f"samples must be {self.samples.dtype} as the queue stores them, got {samples.dtype}")
        order = labels.argsort(stable=True)
        grouped = labels[order]
        pushed = torch.bincount(labels, minlength=self.num_classes)
        first = pushed.cumsum(0) - pushed  # where each class starts in `grouped`
        rank = torch.arange(len(labels)) - first[grouped]
        # More than `capacity` of one class: the newest stay, and no slot is written twice.
        kept = rank >= pushed[grouped] - self.capacity
        grouped, rank, order = grouped[kept], rank[kept], order[kept]
        self.samples[grouped, (self.cursor[grouped] + rank) % self.capacity] = samples[order]
        self.cursor = (self.cursor + pushed) % self.capacity
        self.count = (self.count + pushed).clamp(max=self.capacity)

    def sample(self, labels: Tensor, n: int, *, allow_repeats: bool = False) -> Tensor:
        """Draw n samples for each label, without replacement within a label; draws of different rows are independent.

        Args:
            labels: [B], int64.
            n: samples per label.
            allow_repeats: draw with replacement from a class that holds fewer than n, as the authors' code does.

        Returns:
            [B, n, *S].

        Raises:
            LookupError: a class without samples, or with fewer than n unless `allow_repeats`.
            ValueError: labels that are not [B] class indices.
        """
        self._check_labels(labels)
        count = self.count[labels]
        if (empty := labels[count == 0]).numel():
            raise LookupError(f"no samples yet of classes {_listed(empty)}; push some before sampling")
        short = count < n
        if short.any() and not allow_repeats:
            raise LookupError(
                f"classes {_listed(labels[short])} hold fewer than n={n} samples; push more, ask for fewer, "
                "or pass allow_repeats=True"
            )
        # The n smallest of random keys are a uniform draw without replacement; empty slots never come first.
        keys = torch.rand(len(labels), max(n, self.capacity), generator=self.generator)
        filled = torch.arange(keys.shape[1]) < count[:, None]
        slots = keys.masked_fill(~filled, 2.0).topk(n, largest=False).indices
        if short.any():
            repeats = (keys[:, :n] * count[:, None]).long().minimum(count[:, None] - 1)
            slots = torch.where(short[:, None], repeats, slots)
        return self.samples[labels[:, None], slots]

    def state_dict(self) -> dict[str, Any]:
        """Contents, counts, cursors and generator state; not copies: save or copy them before the next push."""
        return {
            "samples": self.samples,
            "count": self.count,
            "cursor": self.cursor,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: missing or surplus entries, or another number of classes, capacity, sample shape or dtype.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state must have the entries {sorted(self.state_dict())}, got {sorted(state)}")
        for name in ("samples", "count", "cursor"):
            own, other = getattr(self, name), state[name]
            if other.shape != own.shape or other.dtype != own.dtype:
                raise ValueError(
                    f"state[{name!r}] must be {own.dtype} {tuple(own.shape)} to fit this queue, "
                    f"got {other.dtype} {tuple(other.shape)}"
                )
        self.samples.copy_(state["samples"])
        self.count.copy_(state["count"])
        self.cursor.copy_(state["cursor"])
        self.generator.set_state(state["generator"])

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [K], got {labels.dtype} {tuple(labels.shape)}")
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if outside.numel():
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {_listed(outside)}")


def _fresh_generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def _listed(labels: Tensor, most: int = 5) -> str:
    """The first few distinct labels, for a message."""
    distinct = sorted(set(labels.tolist()))
    return str(distinct[:most])[:-1] + (f", ... {len(distinct)} in all]" if len(distinct) > most else "]")
