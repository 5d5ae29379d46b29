"""The processes of one run as its files see them: which one is this, and short messages between all of them.

Over a gloo group of its own: the CPU answers while a GPU computes, and a background thread does not get between the
collectives of the training step. Messages are JSON: nothing is pickled, not even between ranks.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from drifting.training.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """Process number `rank` of `count`; without a group it is alone, and every message is its own.

    `timeout` is the longest that one rank waits for another: for the slowest to write its part of a checkpoint, say.
    `prepare` sets it, for the whole process, to parallel.timeout.
    """

    timeout: ClassVar[timedelta] = timedelta(minutes=10)
    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def connect(cls, timeout: timedelta | None = None) -> "Ranks":
        """Every rank of the default process group, by a collective call; this process alone where there is none.

        What is connected at different places does not get in each other's way. `timeout` of these messages alone.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        group = dist.new_group(backend="gloo", timeout=timeout or cls.timeout)
        return cls(dist.get_rank(), dist.get_world_size(), cast(dist.ProcessGroup, group))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and owns what exists once."""
        return self.rank == 0

    def exchange(self, message: Any) -> list[Any]:
        """The JSON value that each rank gives, in rank order, on every rank; raises RuntimeError if a rank is gone."""
        if self.count == 1:
            return [message]
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self._gather(torch.tensor([len(text)]))]
        padded = torch.cat([text, text.new_zeros(max(sizes) - len(text))])
        texts = zip(self._gather(padded), sizes, strict=True)
        return [json.loads(other[:size].numpy().tobytes()) for other, size in texts]

    def largest(self, number: int) -> int:
        """The largest number that a rank gives, on every rank."""
        if self.count == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, self.group)
        return int(value)

    def close(self) -> None:
        """Give the connections back."""
        if self.group is not None:
            dist.destroy_process_group(self.group)

    def _gather(self, values: Tensor) -> list[Tensor]:
        received = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(received, values, self.group)
        return received


def on_first_rank(action: Callable[[], None], error: type[TrainingError]) -> None:
    """Let rank 0 act while the others wait; every rank raises its `error` if it fails. A collective call."""
    ranks = Ranks.connect()
    failure = raised = None
    try:
        if ranks.first:
            try:
                action()
            except error as caught:
                failure, raised = str(caught), caught
        failure = ranks.exchange(failure)[0]
    finally:
        ranks.close()
    if failure is not None:
        raise raised or error(failure)
