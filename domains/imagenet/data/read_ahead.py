"""Shuffled epochs whose next samples are read in a thread while the present ones are used."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from domains.imagenet.data.shuffled_epochs import ShuffledEpochs

Samples = TypeVar("Samples")


@dataclass(frozen=True, slots=True)
class _Begun(Generic[Samples]):
    """A read that has begun: how many indices and its number, the order before it, which of them, and what is read."""

    count: int
    number: int
    before: dict[str, Any]
    indices: Tensor
    samples: Future[Samples]


class ReadAhead(Generic[Samples]):
    """What `read` makes of the next indices of `epochs`, begun before it is asked for; the state is as if it were not.

    Args:
        epochs: the order; whoever takes from it otherwise does so before the first `take`.
        own: this rank's part of the indices of a read.
        read: own indices and the number of the read, from which it draws what is random -> samples.
    """

    def __init__(
        self, epochs: ShuffledEpochs, own: Callable[[Tensor], Tensor], read: Callable[[Tensor, int], Samples]
    ) -> None:
        self._epochs, self._own, self._read = epochs, own, read
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._begun: _Begun[Samples] | None = None

    def take(self, count: int, number: int) -> tuple[Tensor, Samples]:
        """Own ones of the next `count` indices, and their samples; the next read is expected to be of the same size."""
        begun = self._begun
        if begun is None or (begun.count, begun.number) != (count, number):
            if begun is not None:  # another one was expected
                self._epochs.load_state_dict(begun.before)
            begun = self._begin(count, number)
        self._begun = None
        samples = begun.samples.result()
        self._begun = self._begin(count, number + 1)
        return begun.indices, samples

    def _begin(self, count: int, number: int) -> _Begun[Samples]:
        before = self._epochs.state_dict()
        own = self._own(self._epochs.take(count))
        return _Begun(count, number, before, own, self._thread.submit(self._read, own, number))

    def state_dict(self) -> dict[str, Any]:
        """The order, as it was before what is read ahead."""
        return self._epochs.state_dict() if self._begun is None else self._begun.before

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the order where `state` was taken."""
        self._epochs.load_state_dict(state)
        self._begun = None
