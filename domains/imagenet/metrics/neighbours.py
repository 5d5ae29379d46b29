"""Do samples repeat training images? Each beside its nearest ones (the paper's Figure 6, there by CLIP)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.imagenet.data.image_data import ImageData, to_float
from domains.imagenet.metrics.feature_network import FeatureNetwork
from domains.imagenet.pictures import save_sheet

SHOWN = 10  # nearest images, as in the paper


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Of k samples: index [k, n] into the training set and cosine similarity [k, n], most similar first."""

    index: Tensor
    similarity: Tensor


def nearest_images(
    samples: Tensor, batches: Iterable[Tensor], network: FeatureNetwork, count: int = SHOWN
) -> Neighbours:
    """The `count` most similar of all images in batches, which pass by once, by cosine of pooled features.

    Args:
        samples: [k, C, H, W], as the network takes them.
        batches: of real images, in the order that the result's indices count.
        network: where images are compared.
        count: neighbours of each sample.

    Raises:
        ValueError: fewer images than neighbours.
    """
    own = F.normalize(network.features(samples).pooled, dim=1)
    similarity = torch.empty(len(samples), 0)
    index = torch.empty(len(samples), 0, dtype=torch.long)
    seen = 0
    for images in batches:
        found = own @ F.normalize(network.features(images).pooled, dim=1).T
        similarity = torch.cat([similarity, found], dim=1)
        index = torch.cat([index, torch.arange(seen, seen + len(images)).expand(len(samples), -1)], dim=1)
        similarity, order = similarity.topk(min(count, similarity.shape[1]), dim=1)
        index = index.gather(1, order)
        seen += len(images)
    if seen < count:
        raise ValueError(f"count must be at most the {seen} images, got {count}")
    return Neighbours(index, similarity)


def save_neighbours(path: Path, samples: Tensor, neighbours: Neighbours, data: ImageData) -> None:
    """A sheet with a row per sample [k, C, H, W]: the sample, then its neighbours in `data`, nearest first."""
    rows = [
        torch.cat([to_float(sample[None]), to_float(data.read(index))])
        for sample, index in zip(samples, neighbours.index, strict=True)
    ]
    save_sheet(path, torch.cat(rows), columns=neighbours.index.shape[1] + 1)
