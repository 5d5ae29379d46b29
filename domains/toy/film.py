"""Samples kept during the training, for the figures: part of the checkpoint, so that a resumed run's film is whole."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def geometric_steps(last: int, frames: int) -> list[int]:
    """At most `frames` rising steps from 0 to `last`, denser at the start, where samples move fastest."""
    spread = torch.logspace(0, torch.log10(torch.tensor(last + 1.0)).item(), frames, dtype=torch.float64) - 1
    return sorted({*spread.round().int().tolist(), 0, last})


class Film:
    """Samples of the same noise at rising steps."""

    def __init__(self, noise: Tensor, steps: list[int]) -> None:
        """`noise` [B, K, Z]; `steps` at which `record` keeps a frame."""
        self.noise = noise
        self.planned = steps
        self.steps: list[int] = []
        self.frames: list[Tensor] = []  # each [B, K, 2], on the CPU

    @torch.no_grad()
    def record(self, step: int, generator: nn.Module) -> None:
        """Keep a frame if `step` is a planned one."""
        if step in self.planned:
            self.steps.append(step)
            self.frames.append(generator(self.noise).cpu())

    def state_dict(self) -> dict[str, Any]:
        """Frames so far; the noise is drawn again from the seed."""
        return {"steps": list(self.steps), "frames": list(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the frames of `state`."""
        self.steps, self.frames = list(state["steps"]), list(state["frames"])

    def load_state_dicts(self, states: Sequence[dict[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: all record the same."""
        self.load_state_dict(states[0])
