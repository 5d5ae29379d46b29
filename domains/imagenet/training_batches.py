"""Batches of a training set for what is trained by itself: auto-encoders and tokenizers, in shuffled epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from domains.imagenet.data.image_data import ImageData, to_float
from domains.imagenet.data.read_ahead import ReadAhead
from domains.imagenet.data.shuffled_epochs import ShuffledEpochs
from drifting.training.draws import stream


class TrainingBatches:
    """Every sample once per epoch, in random order; the next batch is read in a thread while this one is used.

    The order is the same on every rank, each of which reads its own part of a batch. What is random about a sample,
    flip, crop or noise, is drawn from the seed, the step and the part.

    Args:
        data: the training set.
        batch: samples of a step, of all ranks together.
        own: this rank's part of it.
        seed: of the run.
    """

    def __init__(self, data: ImageData, batch: int, own: slice, seed: int) -> None:
        self.data, self.batch, self.own, self.seed = data, batch, own, seed
        self._coming = ReadAhead(ShuffledEpochs(len(data), seed), lambda indices: indices[own], self._read)

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """Own samples [n, C, H, W] of update `step`, float32, and labels [n]; steps must follow one another."""
        indices, samples = self._coming.take(self.batch, step)
        return samples, self.data.labels[indices]

    def _read(self, indices: Tensor, step: int) -> Tensor:
        return to_float(self.data.read(indices, stream(self.seed, "read", step, self.own.start)))

    def state_dict(self) -> dict[str, Any]:
        """The order, as it was before what is read ahead, and which data it is of."""
        return {"epochs": self._coming.state_dict(), "fingerprint": self.data.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises ValueError for other data."""
        if state["fingerprint"] != self.data.fingerprint:
            raise ValueError("the run began with other training data; restore them or choose another run.name")
        self._coming.load_state_dict(state["epochs"])

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int) -> None:
        """Continue on another number of ranks: all follow one order."""
        self.load_state_dict(states[0])
