"""Refusal of NaN and infinity without waiting for the device.

Every sample takes part in the mean distance S, whatever its weight, so S is finite only if all samples are. On the CPU
it is read at once. On an accelerator it is copied to the host behind the computation, and read by a later call when it
has arrived: one step late, but no step waits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from drifting.arguments import DriftInputs


class DeferredFiniteCheck:
    """Watches the mean distance of every call."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Tensor, torch.cuda.Event]] = []  # (call, finite [], copy has arrived)
        self._calls = 0

    def watch(self, scales: Tensor, inputs: Sequence[DriftInputs]) -> None:
        """Raise for this call's mean distances [K] of `inputs` (K) on the CPU, for those of an earlier call elsewhere.

        Raises:
            ValueError: samples that are NaN or infinite, or so large that distances overflow.
        """
        self._calls += 1
        if scales.device.type == "meta":
            return
        finite = scales.isfinite()
        if scales.device.type == "cpu":
            if not finite.all():
                where = "; ".join(i.nonfinite() for i, ok in zip(inputs, finite, strict=True) if not ok)
                raise ValueError(f"samples must be finite, got NaN or infinity: {where}")
            return
        self.raise_if_arrived()
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(finite.all(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(scales.device))
        self._pending.append((self._calls, flag, event))

    def raise_if_arrived(self) -> None:
        """Raise for the first call known by now to have had NaN or infinite samples."""
        while self._pending and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            call, flag, _ = self._pending.pop(0)
            if not flag:
                raise ValueError(
                    f"samples must be finite, got NaN or infinity in call {call}, {self._calls - call} calls ago; "
                    "the loss of that call is NaN. Rerun it on the CPU to learn which argument"
                )
