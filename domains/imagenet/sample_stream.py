"""Samples of a generator as evaluation takes them: class-balanced, streamed, in the type of the real images."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from domains.imagenet.config import OneStepGenerator
from domains.imagenet.data.image_data import to_float
from domains.imagenet.metrics.image_batches import to_8_bits
from domains.imagenet.sampling import generate_batches
from domains.imagenet.tokenizers import Tokenizer

SAMPLE_SEED = 99


def balanced_labels(num_classes: int, count: int) -> Tensor:
    """`count` labels, every class as often as any other up to one, in random order: parts hold all classes alike."""
    labels = torch.arange(count) % num_classes
    return labels[torch.randperm(count, generator=torch.Generator().manual_seed(SAMPLE_SEED))]


@dataclass
class SampleStream:
    """Samples of one generator for labels [n]; `dtype` uint8 rounds them to 8 bits as `rounding` says.

    tokenizer: decodes them; None for a generator of pixels. batch: images at a time. rank, ranks: this process and how
    many there are; each streams its part of the samples, neighbours in their order.
    """

    generator: OneStepGenerator
    labels: Tensor
    dtype: torch.dtype
    _: KW_ONLY
    rounding: str = "nearest"
    batch: int = 1000
    tokenizer: Tokenizer | None = None
    rank: int = 0
    ranks: int = 1
    kept: dict[int, Tensor] = field(default_factory=dict, init=False)
    shape: tuple[int, ...] = field(default=(), init=False)  # of an image, known once they are streamed

    def at(self, alpha: float, keep: Tensor | None = None) -> Iterator[Tensor]:
        """Batches [<= batch, C, H, W] at one guidance scale; of indices `keep` [m] the images stay in `kept`.

        Every rank calls the generator equally often, for its weights may be shared out; what it makes beyond its own
        part is left away.
        """
        wanted = set() if keep is None else set(keep.tolist())
        self.kept = {}
        total = len(self.labels)
        seen, stop = total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks
        labels = torch.cat([self.labels, self.labels[:1]])[seen : seen - (-total // self.ranks)]
        for samples in generate_batches(
            self.generator,
            labels,
            alpha,
            seed=SAMPLE_SEED,
            batch=self.batch,
            tokenizer=self.tokenizer,
            first=seen,
        ):
            samples = samples[: stop - seen]
            if not len(samples):
                return
            images = to_8_bits(samples, self.rounding) if self.dtype == torch.uint8 else samples
            self.shape = tuple(images.shape[1:])
            for index in wanted & set(range(seen, seen + len(images))):
                self.kept[index] = images[index - seen].clone()
            seen += len(images)
            yield images

    def chosen(self, indices: Tensor) -> Tensor:
        """Kept images at indices [m], in the type of the stream; a collective call where there are several ranks."""
        if self.ranks == 1:
            return torch.stack([self.kept[index] for index in indices.tolist()])
        images = torch.zeros(len(indices), *self.shape, dtype=self.dtype)
        for place, index in enumerate(indices.tolist()):
            if index in self.kept:  # on one rank
                images[place] = self.kept[index]
        dist.all_reduce(images)
        return images

    def shown(self, indices: Tensor) -> Tensor:
        """The same, float32 in [-1, 1]."""
        return to_float(self.chosen(indices))


def first_of_classes(labels: Tensor, classes: int, columns: int) -> Tensor:
    """Indices [classes * columns] of the first images of each of the first classes, a class after the other.

    Raises:
        ValueError: a class that has fewer.
    """
    found = []
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)[:columns]
        if len(members) < columns:
            raise ValueError(f"labels must have at least {columns} of class {label}, got {len(members)}")
        found.append(members)
    return torch.cat(found)
