"""Three ways to sum the drifting loss over the features of an encoder that has run already.

Shapes: B labels, G generated, P positives, N unconditional samples per label; K samples, F locations, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.official_torch import TEMPERATURES, official_loss
from drifting import DriftLoss, FeatureDriftLoss, guidance_weight

Features = dict[str, Tensor]  # {key: [K, F, D]}
ALPHA = 1.5  # guidance scale of every label


@dataclass(frozen=True, slots=True)
class Sizes:
    B: int
    G: int
    P: int
    N: int

    def split(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Positives [B P, ...] and unconditional samples [B N, ...] of [B (P + N), ...]."""
        return tuple(real.split([self.B * self.P, self.B * self.N]))


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of one step: generated ones are leaves, so that the loss can be timed without its encoder."""

    sizes: Sizes
    gen: Features
    pos: Features
    neg: Features

    def neg_weight(self) -> Tensor:
        alpha = torch.full((self.sizes.B,), ALPHA)
        return guidance_weight(alpha, self.sizes.G, self.sizes.N)[:, None].expand(-1, self.sizes.N)

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, list(self.gen.values()))

    def problems(self, features: Features, key: str) -> Tensor:
        """[B F, K / B, D]: one drifting problem per label and location."""
        return rearrange(features[key], "(b k) f d -> (b f) k d", b=self.sizes.B)


class Replay(nn.Module):
    """An encoder that has run already: a sample is the number of the block that it belongs to."""

    def __init__(self, batch: FeatureBatch) -> None:
        super().__init__()
        self.blocks = (batch.gen, batch.pos, batch.neg)
        sizes = batch.sizes
        self.samples = [torch.full((sizes.B, k, 1), float(i)) for i, k in enumerate((sizes.G, sizes.P, sizes.N))]

    def forward(self, samples: Tensor) -> Features:
        (block,) = samples.unique().long().tolist()
        return self.blocks[block]


def feature_drift_loss(batch: FeatureBatch) -> tuple[Tensor, ...]:
    replay = Replay(batch)
    loss = FeatureDriftLoss(replay, DriftLoss(TEMPERATURES))(*replay.samples, neg_weight=batch.neg_weight())
    return batch.gradients(loss)


def loop_over_keys(batch: FeatureBatch, one_key: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """`one_key`(gen, pos, neg, neg_weight) [] for each key by itself, summed."""
    total = torch.zeros(())
    for key, features in batch.gen.items():
        blocks = [batch.problems(block, key) for block in (batch.gen, batch.pos, batch.neg)]
        total = total + one_key(*blocks, batch.neg_weight().repeat_interleave(features.shape[1], dim=0))
    return batch.gradients(total)


def drift_loss_per_key(batch: FeatureBatch) -> tuple[Tensor, ...]:
    loss = DriftLoss(TEMPERATURES)
    return loop_over_keys(batch, lambda gen, pos, neg, weight: loss(gen, pos, neg, neg_weight=weight))


def transcription_per_key(batch: FeatureBatch) -> tuple[Tensor, ...]:
    return loop_over_keys(batch, official_loss)


LOSSES = {
    "ours": feature_drift_loss,
    "DriftLoss per key": drift_loss_per_key,
    "transcription per key": transcription_per_key,
}
