"""The time that a step waits for other ranks, as region "communication" of a `StepTimer`.

    with timed_collectives(timer):               # around the whole loop
        ...
    time_reduction(ddp, timer)                   # once, where gradients are reduced by DistributedDataParallel

What runs beside the computation is not waiting and is not counted: collectives called with async_op=True, those on
another CUDA stream (FSDP's), and DistributedDataParallel's reductions up to the last one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from drifting.training.step_timer import StepTimer

REGION = "communication"
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "all_to_all_single",
    "broadcast",
    "barrier",
)
"""Functions of torch.distributed; some have another name in other releases of torch."""


@contextmanager
def timed_collectives(timer: StepTimer) -> Iterator[None]:
    """Count the waiting collectives of this process that are called as `torch.distributed.<name>`."""
    original = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}
    for name, function in original.items():
        setattr(dist, name, _timed(function, timer))
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(dist, name, function)


def _timed(function: Callable[..., Any], timer: StepTimer) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        aside = torch.cuda.is_initialized() and torch.cuda.current_stream() != torch.cuda.default_stream()  # type: ignore[no-untyped-call]
        if aside or kwargs.get("async_op", False):
            return function(*args, **kwargs)
        with timer.region(REGION):
            return function(*args, **kwargs)

    return call


def time_reduction(module: DistributedDataParallel, timer: StepTimer) -> None:
    """Count the end of every backward pass, from the start of the last reduction until all have arrived.

    Takes the module's communication hook; the reduction is the module's own, a mean over ranks.
    """

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        if bucket.is_last():
            timer.begin(REGION)
            queue = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            # The module waits for its reductions in a callback that it queues after this hook: ours comes after that.
            queue(lambda: queue(timer.end))
        return allreduce_hook(group, bucket)

    module.register_comm_hook(module.process_group, hook)  # type: ignore[no-untyped-call]
