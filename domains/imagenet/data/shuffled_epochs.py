"""The order in which a training set is read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


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
