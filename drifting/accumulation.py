"""One large batch a part at a time: the same S, lambda and gradient as in one piece, in the memory of one part.

    parts = [Repeated(lambda rows=rows: {"gen": generator(noise(rows)), "pos": real[rows]}) for rows in slices]
    loss = backward_in_parts(drift_loss, parts)

S and lambda are means over the whole batch, and lambda needs S: every part is visited twice without a gradient before
its backward pass. The cost is two more forward passes of the generator and of the encoder over the generated samples
(real ones may be encoded once, see `FeatureDriftLoss.encode`): with a backward pass of twice a forward, 5/3 of the time
of one piece. Gradients accumulated without it are those of other statistics, a different objective.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from drifting.arguments import DriftInputs
from drifting.engine import BatchStatistics
from drifting.features import FeatureDriftLoss
from drifting.loss import DriftLoss

Part = Callable[[], Mapping[str, Any]]
"""Keyword arguments of the loss, `gen` included, for some problems of the batch; the same ones at every call."""


class Repeated:
    """Calls a function again and again with the random numbers of the first call.

    Covers torch's global generators of the CPU and of the current CUDA device; they continue as after the first call.
    """

    def __init__(self, function: Part) -> None:
        self.function = function
        self._before: tuple[Tensor, Tensor | None] | None = None

    def __call__(self) -> Mapping[str, Any]:
        """The function's result."""
        cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if self._before is None:
            self._before = torch.get_rng_state(), torch.cuda.get_rng_state() if cuda else None
            return self.function()
        cpu_state, cuda_state = self._before
        with torch.random.fork_rng([torch.cuda.current_device()] if cuda_state is not None else []):
            torch.set_rng_state(cpu_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state)
            return self.function()


def backward_in_parts(
    loss: DriftLoss | FeatureDriftLoss,
    parts: Sequence[Part],
    *,
    unsynchronized: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradient of the loss of all parts together to the parameters; returns that loss, [], detached.

    Args:
        loss: takes each part's arguments; its normalisers are those of the whole batch, over every rank.
        parts: of this rank, one or more; each is called three times. See `Repeated`.
        unsynchronized: context of all backward passes but the last, such as `no_sync` of a DistributedDataParallel.

    Raises:
        ValueError: no part, or what the loss raises.
    """
    if not parts:
        raise ValueError("parts must be one or more functions, got none")
    sizes = [0] * len(parts)

    def visit() -> Iterator[Iterator[list[DriftInputs]]]:
        for index, part in enumerate(parts):
            given = part()
            sizes[index] = len(given["gen"])
            yield _lots(loss, given)

    with torch.no_grad():
        statistics = (loss.loss if isinstance(loss, FeatureDriftLoss) else loss).joint_statistics(visit)
    values = []
    for index, part in enumerate(parts):
        with nullcontext() if index == len(parts) - 1 else unsynchronized():
            value = _sum_over_features(loss, part(), statistics) * (sizes[index] / sum(sizes))
            value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    return torch.stack(values).sum()


def _lots(loss: DriftLoss | FeatureDriftLoss, given: Mapping[str, Any]) -> Iterator[list[DriftInputs]]:
    """The problems of one part, features that the loss processes together at a time."""
    if isinstance(loss, FeatureDriftLoss):
        return loss.lots(loss.inputs(**given), len(given["gen"]))
    return iter([[DriftInputs(**given)]])


def _sum_over_features(
    loss: DriftLoss | FeatureDriftLoss, given: Mapping[str, Any], statistics: BatchStatistics
) -> Tensor:
    """Loss of one part under the statistics of the whole batch, []."""
    drift_loss = loss.loss if isinstance(loss, FeatureDriftLoss) else loss
    lots = list(_lots(loss, given))
    known = statistics.split([len(lot) for lot in lots])
    losses = [each for lot, own in zip(lots, known, strict=True) for each in drift_loss.joint_losses(lot, own)]
    return torch.stack([each.mean() for each in losses]).sum()
