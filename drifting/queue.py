"""SampleQueue: the newest samples of every class, first in first out (paper A.8).

Positives come from one queue with a class per label, unconditional negatives from another with a single class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drifting.dealing import deal_queue
from drifting.row_copies import StagedCopy, write_rows


class SampleQueue:
    """Ring buffers of real samples, one per class; push and sample without a Python loop over samples.

    Args:
        num_classes: C.
        capacity: samples kept per class.
        sample_shape: shape S of one sample.
        dtype: storage type; uint8 for pixels saves three quarters of the memory.
        generator: source of the draws, saved and restored with the queue; None makes one, seeded from torch's global
            generator.
        pin_memory: `sample(..., device="cuda")` goes through two pinned buffers of one draw each and overlaps with
            compute. The samples themselves stay in ordinary memory, and so does what is drawn for the CPU.

    Raises:
        ValueError: no class or no capacity, or `pin_memory` without CUDA.
    """

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        sample_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
        *,
        pin_memory: bool = False,
    ) -> None:
        if num_classes < 1 or capacity < 1:
            raise ValueError(f"num_classes and capacity must be >= 1, got {num_classes} and {capacity}")
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True needs CUDA, and torch finds none here; leave it False on the CPU")
        self.samples = torch.zeros(num_classes, capacity, *sample_shape, dtype=dtype)
        self.count = torch.zeros(num_classes, dtype=torch.int64)  # samples held
        self.cursor = torch.zeros(num_classes, dtype=torch.int64)  # slot of the next push
        self.generator = _fresh_generator() if generator is None else generator
        self.pin_memory = pin_memory
        self._staged: StagedCopy | None = None  # made by the first draw for a CUDA device

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
        if samples.dtype != self.samples.dtype or samples.device.type != "cpu":
            raise ValueError(
                f"samples must be {self.samples.dtype} on the CPU as the queue stores them, "
                f"got {samples.dtype} on {samples.device}"
            )
        if not len(labels):
            return
        grouped, order = labels.sort(stable=True)
        position = torch.arange(len(labels))
        older = position - torch.searchsorted(grouped, grouped)  # samples of the same class before it in this push
        slots = (self.cursor[grouped] + older).remainder_(self.capacity).add_(grouped, alpha=self.capacity)
        if len(labels) <= self.capacity or (stays := _newer(grouped) < self.capacity).all():
            slots = torch.empty_like(slots).scatter_(0, order, slots)  # cheaper than to put the samples in order
        else:  # more than `capacity` of one class: only the newest are written, and no slot twice
            slots, samples = slots[stays], samples.index_select(0, order[stays])
        write_rows(self.samples.flatten(0, 1), slots, samples)
        pushed = torch.bincount(labels, minlength=self.num_classes)
        self.cursor.add_(pushed).remainder_(self.capacity)
        self.count.add_(pushed).clamp_(max=self.capacity)

    def sample(
        self,
        labels: Tensor,
        n: int,
        *,
        allow_repeats: bool = False,
        device: torch.device | str | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Draw n samples for each label, without replacement within a label; draws of different rows are independent.

        Args:
            labels: [B], int64.
            n: samples per label.
            allow_repeats: draw with replacement from a class that holds fewer than n, as the authors' code does.
            device: where the samples go; None is the CPU. With `pin_memory` a CUDA device gets them while it computes:
                the current stream waits for them, the CPU does not.
            out: [B, n, *S] on the CPU, written and returned. Memory that is used again is several times as fast as
                fresh memory, whose pages the system must find and clear first.

        Returns:
            [B, n, *S].

        Raises:
            LookupError: a class without samples, or with fewer than n unless `allow_repeats`.
            ValueError: labels that are not [B] class indices, `out` that does not fit, a device that is not there.
        """
        self._check_labels(labels)
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        device = torch.device("cpu" if device is None else device)
        shape = (len(labels), n, *self.samples.shape[2:])
        self._check_target(shape, device, out)
        count = self.count[labels]
        short = count < max(n, 1)
        if short.any():
            if (empty := labels[count == 0]).numel():
                raise LookupError(f"no samples yet of classes {_listed(empty)}; push some before sampling")
            if not allow_repeats:
                raise LookupError(
                    f"classes {_listed(labels[short])} hold fewer than n={n} samples; push more, ask for fewer, "
                    "or pass allow_repeats=True"
                )
            slots = random_slots(count[:, None].expand(-1, n), self.generator)
            slots[~short] = distinct_slots(count[~short], n, self.generator)
        else:
            slots = distinct_slots(count, n, self.generator)
        rows = (labels[:, None] * self.capacity + slots).flatten()
        if out is not None:
            torch.index_select(self.samples.flatten(0, 1), 0, rows, out=out.flatten(0, 1))
            return out
        return self._rows_on(device, rows).view(shape)

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

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: the share of `rank` in the queues of all that saved (dealing.py)."""
        self.load_state_dict(deal_queue(states, rank=rank, ranks=ranks, capacity=self.capacity))

    def _rows_on(self, device: torch.device, rows: Tensor) -> Tensor:
        """Stored samples by flat index, rows [R] -> [R, *S] on a device."""
        stored = self.samples.flatten(0, 1)
        if device.type != "cuda" or not self.pin_memory:
            return stored.index_select(0, rows).to(device)
        device = torch.cuda.current_stream(device).device  # with its index: plain "cuda" is the current device
        if self._staged is None or self._staged.device != device:
            self._staged = StagedCopy(device, stored.shape[1:], stored.dtype)
        return self._staged.send(lambda buffer: torch.index_select(stored, 0, rows, out=buffer), len(rows))

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [K], got {labels.dtype} {tuple(labels.shape)}")
        if labels.device.type != "cpu":
            raise ValueError(f"labels must lie on the CPU, as the queue does, got {labels.device}; pass labels.cpu()")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            outside = labels[(labels < 0) | (labels >= self.num_classes)]
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {_listed(outside)}")

    def _check_target(self, shape: tuple[int, ...], device: torch.device, out: Tensor | None) -> None:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={str(device)!r} needs CUDA, and torch finds none here; leave it None for the CPU")
        if out is None:
            return
        if device.type != "cpu":
            raise ValueError(f"out takes samples on the CPU, got device={str(device)!r} as well; pass one of them")
        expected = (self.samples.dtype, shape, torch.device("cpu"))
        if (out.dtype, tuple(out.shape), out.device) != expected or not out.is_contiguous():
            raise ValueError(
                f"out must be a contiguous {self.samples.dtype} {shape} on the CPU, got {out.dtype} {tuple(out.shape)} "
                f"on {out.device}{'' if out.is_contiguous() else ', not contiguous'}"
            )


def distinct_slots(count: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Uniform ordered draws of n distinct slots out of 0..count-1, row by row; count [B], each >= n -> [B, n]."""
    if not (count >= 10 * n).all():
        # The n smallest of random keys; empty slots never come first. The work grows with the keys, not with n.
        keys = torch.rand(len(count), int(count.max()), generator=generator)
        filled = torch.arange(keys.shape[1]) < count[:, None]
        return keys.masked_fill(~filled, 2.0).topk(n, largest=False).indices
    # Few of many: draw with replacement and redraw what repeats an earlier draw. What is redrawn depends only on which
    # draws are equal, so that renumbering the slots changes no probability: all n-tuples of distinct slots are equal.
    bound = count[:, None].expand(-1, n)
    slots = random_slots(bound, generator)
    while True:
        ascending, draw = slots.sort(dim=1, stable=True)
        repeats = ascending[:, 1:] == ascending[:, :-1]
        if not repeats.any():
            return slots
        row, rank = repeats.nonzero(as_tuple=True)
        again = row, draw[row, rank + 1]
        slots[again] = random_slots(bound[again], generator)


def random_slots(bound: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform draws from 0..bound-1; any shape -> same shape. 62 random bits leave no bias to speak of."""
    return torch.randint(2**62, bound.shape, generator=generator) % bound


def _newer(grouped: Tensor) -> Tensor:
    """How many equal labels follow each one; [K], in ascending order -> [K]."""
    return torch.searchsorted(grouped, grouped, right=True) - torch.arange(1, len(grouped) + 1)


def _fresh_generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def _listed(labels: Tensor, most: int = 5) -> str:
    """The first few distinct labels, for a message."""
    distinct = sorted(set(labels.tolist()))
    return str(distinct[:most])[:-1] + (f", ... {len(distinct)} in all]" if len(distinct) > most else "]")
