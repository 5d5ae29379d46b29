"""Where the loop stands, and when periodic work is due."""

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainState:
    """The loop's own state: `step` optimiser steps are done."""

    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of `state`."""
        self.step = int(state["step"])


def every(interval: int, step: int, *, last: int | None = None) -> bool:
    """Whether periodic work is due after `step` steps: at multiples of `interval`, and at step `last` anyway."""
    return step % interval == 0 or step == last
