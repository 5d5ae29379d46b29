"""Exponential moving averages of a module's weights: theta_ema <- d theta_ema + (1 - d) theta, every step.

No bias correction: the average starts at the initial weights, as in the paper. Buffers are copied, not averaged.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from drifting.training.optimizer import local_part


def effective_decay(decay: float, updates: int, *, warmup: bool) -> float:
    """Decay of update n = `updates` (0 is the first): `decay`, or min(decay, (1 + n) / (10 + n)) with warm-up."""
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


class Ema:
    """One average of `module` per decay; each is a module of its own, in eval mode, without gradients.

    `module` is the bare model, its parameters in float32 or float64: (1 - d) of 1e-3 is below what bfloat16 resolves.
    """

    def __init__(self, module: nn.Module, decays: Sequence[float], *, warmup: bool = False) -> None:
        if not decays or not all(0 <= decay < 1 for decay in decays) or len(set(decays)) < len(decays):
            raise ValueError(f"decays must be one or more distinct numbers in [0, 1), got {list(decays)}")
        for name, parameter in module.named_parameters():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"module must have float32 or float64 parameters, got {parameter.dtype} for {name}; "
                    "keep the weights in float32 and compute under autocast"
                )
        self.decays = tuple(decays)
        self.warmup = warmup
        self.updates = 0
        self._averages = [deepcopy(module).eval().requires_grad_(False) for _ in self.decays]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move every average towards the weights of `module`, and copy its buffers.

        Where ranks share out the weights, each moves its shards; the averages are sharded alike (see `parallelize`).
        """
        live = [local_part(parameter.detach()) for parameter in module.parameters()]
        buffers = list(module.buffers())
        for decay, average in zip(self.decays, self._averages, strict=True):
            weight = 1 - effective_decay(decay, self.updates, warmup=self.warmup)
            torch._foreach_lerp_([local_part(ours) for ours in average.parameters()], live, weight)
            for ours, theirs in zip(average.buffers(), buffers, strict=True):
                ours.copy_(theirs)
        self.updates += 1

    @property
    def models(self) -> list[nn.Module]:
        """All averages, in the order of the decays."""
        return list(self._averages)

    def model(self, decay: float | None = None) -> nn.Module:
        """The average of `decay`, the first decay if not given, to evaluate; it changes at the next update."""
        if decay is None:
            return self._averages[0]
        if decay not in self.decays:
            raise ValueError(f"decay must be one of {list(self.decays)}, got {decay}")
        return self._averages[self.decays.index(decay)]

    def state_dict(self) -> dict[str, Any]:
        """The averages by decay, and the number of updates."""
        averages = zip(self.decays, self._averages, strict=True)
        return {"updates": self.updates, "averages": {str(decay): model.state_dict() for decay, model in averages}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; raises ValueError, before any change, unless it has the same decays."""
        asked = [str(decay) for decay in self.decays]
        if set(state["averages"]) != set(asked):
            raise ValueError(f"state must have averages for the decays {asked}, got {list(state['averages'])}")
        for decay, model in zip(asked, self._averages, strict=True):
            model.load_state_dict(state["averages"][decay])
        self.updates = int(state["updates"])
