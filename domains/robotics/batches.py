"""Which windows a step sees, and the chunks of neighbouring observations: a function of seed and step alone.

Every window is seen once per epoch, in an order drawn anew for each. Ranks take neighbouring parts of the same batch,
so that a run does not depend on how many there are, and a continued run needs nothing saved.
Shapes: W windows in all, B of this rank in a step, k neighbours, To steps, O low-dimensional numbers of one step.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.robotics.action_space import ActionSpace
from domains.robotics.demonstrations.windows import WindowDataset
from domains.robotics.observations import ObservationEncoder
from drifting.training.draws import stream

ROWS_AT_ONCE = 1024  # of the distance matrix between all windows


@dataclass(frozen=True)
class StepBatch:
    """`observations` {key: [B, To, ...]}, `actions` [B, H, E], `neighbours` [B, k, H, E] or None."""

    observations: dict[str, Tensor]
    actions: Tensor
    neighbours: Tensor | None


class StepBatches:
    """The windows of each step.

    Args:
        windows: of the training demonstrations.
        size: windows of a step over all ranks.
        own: which of them are this rank's.
        seed: of the run.
        neighbours: windows whose actions also fit, [W, k]; see `nearest_windows`.
        actions: of the policy. Where they are relative, a neighbour's chunk fits as it is seen from the neighbour's
            place.
    """

    def __init__(
        self,
        windows: WindowDataset,
        *,
        size: int,
        own: slice,
        seed: int,
        neighbours: Tensor | None = None,
        actions: ActionSpace | None = None,
    ) -> None:
        self._windows, self._size, self._own, self._seed, self._neighbours = windows, size, own, seed, neighbours
        self._carried = actions if actions is not None and actions.present else None
        self._orders: dict[int, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "windows") if windows.reads else None
        self._ahead: tuple[int, Future[StepBatch]] | None = None

    def draw(self, step: int) -> StepBatch:
        """The batch of update number `step`; where images are read from the store, the next one is begun."""
        if self._thread is None:
            return self._draw(step)
        number, batch = self._ahead or (-1, None)
        if batch is None or number != step:
            batch = self._thread.submit(self._draw, step)
        drawn = batch.result()
        self._ahead = step + 1, self._thread.submit(self._draw, step + 1)
        return drawn

    def _draw(self, step: int) -> StepBatch:
        chosen = self.indices(step)[self._own]
        batch = self._windows.batch(chosen)
        near = None
        if self._neighbours is not None:
            present = {} if self._carried is None else self._carried.present
            others = self._windows.batch(self._neighbours[chosen].flatten(), present)
            near = others.actions.unflatten(0, (len(chosen), -1))
            if self._carried is not None:
                near = self._carried.carried(near, others.observations, batch.observations)
        return StepBatch(batch.observations, batch.actions, near)

    def indices(self, step: int) -> Tensor:
        """Windows of all ranks at update number `step`, [size]."""
        total = len(self._windows)
        first, end = step * self._size, (step + 1) * self._size
        epochs = range(first // total, (end - 1) // total + 1)
        self._orders = {
            epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch, total) for epoch in epochs
        }
        start = epochs[0] * total
        return torch.cat([self._orders[epoch] for epoch in epochs])[first - start : end - start]

    def _order(self, epoch: int, total: int) -> Tensor:
        return torch.randperm(total, generator=stream(self._seed, "order", epoch))


@torch.no_grad()
def nearest_windows(windows: WindowDataset, encoder: ObservationEncoder, count: int) -> Tensor:
    """For each window the `count` windows of *other* demonstrations with the nearest observations, [W, count].

    Near in the normalised low-dimensional observations of all To steps. Of one demonstration several may be taken, but
    they are of the same moment: what the expert did there is nearly the same.

    Raises:
        ValueError: fewer than two demonstrations, or no low-dimensional observation.
    """
    if encoder.normalizer is None:
        raise ValueError("neighbours need low-dimensional observations, the task has images only")
    if len(windows.episodes) < 2:
        raise ValueError("neighbours need two demonstrations or more, got one")
    every = encoder.low_dimensional(windows.batch(torch.arange(len(windows)), encoder.widths).observations)  # [W, To O]
    episode = windows.episode.to(every.device)
    nearest = []
    for rows in torch.arange(len(every), device=every.device).split(ROWS_AT_ONCE):
        distance = torch.cdist(every[rows], every)
        distance[episode[rows][:, None] == episode[None]] = float("inf")
        nearest.append(distance.topk(count, largest=False).indices)
    return torch.cat(nearest)
