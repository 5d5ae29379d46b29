"""What one streamed pass over images leaves: moments of all of them, features and logits."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from domains.imagenet.metrics.feature_network import FeatureNetwork
from domains.imagenet.metrics.image_batches import some_of
from domains.imagenet.metrics.moments import Moments


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Of n images in the space of `network`.

    moments, spatial: of all pooled features, of all spatial ones or None. pooled: [m, d] float32, of m <= n images.
    logits: [n, c] of all, or None.
    """

    network: str
    moments: Moments
    spatial: Moments | None
    pooled: Tensor
    logits: Tensor | None

    def thinned(self, most: int) -> "FeatureSet":
        """With the features of at most `most` random images; moments and logits stay those of all."""
        return replace(self, pooled=self.pooled[some_of(len(self.pooled), most)])

    def over_ranks(self) -> "FeatureSet":
        """Of the images of all ranks, in rank order: a collective call; itself where there is one process."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self
        return FeatureSet(
            self.network,
            self.moments.over_ranks(),
            None if self.spatial is None else self.spatial.over_ranks(),
            rows_of_ranks(self.pooled),
            None if self.logits is None else rows_of_ranks(self.logits),
        )


def rows_of_ranks(rows: Tensor) -> Tensor:
    """The rows [n, d] of all ranks in their order; n may differ. A collective call, on the CPU."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    padded = rows.new_zeros(int(max(counts)), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


class Pass:
    """Gathers a `FeatureSet` batch by batch.

    Args:
        network: the space.
        keep: [n] bool, of which images pooled features are kept; None: of all.
        with_logits: whether logits are kept.
    """

    def __init__(self, network: FeatureNetwork, *, keep: Tensor | None = None, with_logits: bool = True) -> None:
        self.network = network
        self.keep = keep
        self.with_logits = with_logits
        self.seen = 0
        self.moments: Moments | None = None
        self.spatial: Moments | None = None
        self.pooled: list[Tensor] = []
        self.logits: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """One batch [k, C, H, W], k >= 1, as the network takes it."""
        found = self.network.features(images)
        self.moments = _merged(self.moments, found.pooled)
        if found.spatial is not None:
            self.spatial = _merged(self.spatial, found.spatial)
        if found.logits is not None and self.with_logits:
            self.logits.append(found.logits)
        stop = self.seen + len(images)
        self.pooled.append(found.pooled if self.keep is None else found.pooled[self.keep[self.seen : stop]])
        self.seen = stop

    def result(self) -> FeatureSet:
        """Of all batches so far.

        Raises:
            ValueError: there were none.
        """
        if self.moments is None:
            raise ValueError("batches must hold at least one image, got none")
        logits = torch.cat(self.logits) if self.logits else None
        return FeatureSet(self.network.name, self.moments, self.spatial, torch.cat(self.pooled), logits)


def gather(
    batches: Iterable[Tensor], network: FeatureNetwork, *, keep: Tensor | None = None, with_logits: bool = True
) -> FeatureSet:
    """One pass over batches of images [k, C, H, W]; see `Pass`."""
    whole = Pass(network, keep=keep, with_logits=with_logits)
    for images in batches:
        whole.add(images)
    return whole.result()


def _merged(moments: Moments | None, features: Tensor) -> Moments:
    own = Moments.of(features)
    return own if moments is None else moments.merged(own)
