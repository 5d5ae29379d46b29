"""How good samples are; compare with what training images score in their place, against the same held-out images.

    fd          Frechet distance to held-out images in a judge's features: FD(judge), never an FID
    fd_matched  the same of only as many samples as training images: it counts their sampling noise too
    accuracy    share of samples to which a judge gives the label they were asked for
    std         within-class pixel standard deviation; a collapsed model scores accuracy 1.00 and std 0.03
    precision   share of samples inside the 5-nearest-neighbour balls of held-out images (Kynkaanniemi et al. 2019)
    recall      share of held-out images inside the 5-nearest-neighbour balls of samples, both in pixels
    nearest     median distance to the nearest training image; far below that of held-out images: memorising

A set of training images is one estimate of the data distribution, a generator another: fd takes all samples there are
(50k by default), so that a generator that equals its training set scores what the training set scores. fd_matched is a
mean over draws of equal numbers of both, per class as many as the smaller set has. recall depends on the number too: it
is a mean over draws of as many as held-out images, the equal numbers of its authors' protocol.

fd and accuracy are of all images, in one streamed pass. The other figures compare pixels, at a cost that grows with the
product of two sets: above `PIXEL_BUDGET` they are of fewer images, at random (of 28 x 28 pixels some 6600, of 64 x 64
in colour some 1700; of the digits all).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from domains.imagenet.data.image_data import ImageData, to_float
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.judge import Judge
from domains.imagenet.metrics.feature_set import FeatureSet, Pass
from domains.imagenet.metrics.frechet import frechet_distance
from domains.imagenet.metrics.image_batches import in_batches, some_of
from domains.imagenet.metrics.moments import Moments
from domains.imagenet.metrics.precision_recall import distances, inside_balls

NEIGHBOURS = 5
DRAWS = 5
BATCH = 1000
PIXEL_BUDGET = 2**35  # multiplications in one comparison of two sets of images
NEAREST_BUDGET = 2**36  # the same, where the training images are one of the two


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one labelled set of images against a reference set."""

    fd: float
    fd_matched: float
    accuracy: float
    std: float
    precision: float
    recall: float
    nearest: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What a pass over labelled images keeps: spaces, one per judge; labels [n]; pixels of some images, float32."""

    spaces: tuple[FeatureSet, ...]
    labels: Tensor
    pixels: LabelledImages

    @property
    def flat(self) -> Tensor:
        """Pixels [m, C H W]."""
        return self.pixels.images.flatten(1)


def observe(batches: Iterable[Tensor], labels: Tensor, judges: Sequence[Judge], *, pixels: int) -> Observed:
    """One pass over batches of images with labels [n], in their order; `pixels`: how many images are kept at most."""
    wanted = some_of(len(labels), pixels)
    keep = torch.zeros(len(labels), dtype=torch.bool)
    keep[wanted] = True
    passes = [Pass(judge) for judge in judges]
    kept: list[Tensor] = []
    seen = 0
    for images in batches:
        if seen + len(images) > len(labels):
            break  # and refuse below
        for judge_pass in passes:
            judge_pass.add(images)
        kept.append(to_float(images[keep[seen : seen + len(images)]]))
        seen += len(images)
    if seen != len(labels):
        raise ValueError(f"labels must be one for each image, got {len(labels)} labels for another number of images")
    spaces = tuple(judge_pass.result() for judge_pass in passes)
    return Observed(spaces, labels, LabelledImages(torch.cat(kept), labels[wanted]))


def pixel_counts(width: int, held_out: int) -> tuple[int, int]:
    """How many samples and how many held-out images, of `width` pixels, may be compared within the budget."""
    pairs = max(4, PIXEL_BUDGET // width)
    compared = min(held_out, math.isqrt(pairs))
    return pairs // compared, compared


def frechet(x: Tensor, y: Moments) -> float:
    """Frechet distance of the Gaussians fitted to features x [K, D] and to a set of moments."""
    return frechet_distance(Moments.of(x).gaussian(), y.gaussian())


def within_class_std(data: LabelledImages) -> float:
    """RMS over classes and pixels of the unbiased within-class standard deviation."""
    counts = data.labels.bincount()
    several = (counts >= 2).nonzero().squeeze(1)  # one image of a class has no deviation
    variances = [data.images[data.labels == label].var(0).mean() for label in several]
    return float(torch.stack(variances).mean().sqrt())


def median_nearest(points: Tensor, batches: Iterable[Tensor]) -> float:
    """Median distance of points [K, D] to the nearest of all images in `batches`, which pass by once."""
    nearest = torch.full((len(points),), torch.inf)
    for images in batches:
        others = to_float(images).flatten(1)
        found = torch.cat([part.amin(1) for part in distances(points, others)])
        nearest = torch.minimum(nearest, found)
    return float(nearest.median())


def class_matched(labels: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of random samples among `labels` [K], of every class as many as `counts` [C] says.

    Raises:
        ValueError: a class of which there are fewer.
    """
    chosen = []
    for label in counts.nonzero().squeeze(1):
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < counts[label]:
            raise ValueError(f"labels must have at least {counts[label]} of class {label}, got {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[: counts[label]]])
    return torch.cat(chosen)


def fewer(labels: Tensor, others: Tensor) -> Tensor:
    """Per class, how many the smaller of two sets has; labels [K], others [L] -> [C]."""
    classes = int(max(labels.max(), others.max())) + 1
    return torch.minimum(labels.bincount(minlength=classes), others.bincount(minlength=classes))


def measure(data: ImageData, held_out: ImageData, train: ImageData, judges: Sequence[Judge]) -> Quality:
    """Every figure of a set of images that is held, not streamed.

    Args:
        data: samples; or training images, for what real images score.
        held_out: real images that neither generator nor judges have seen.
        train: the training images of generator and judges.
        judges: trained on `train`.
    """
    most, most_held_out = pixel_counts(math.prod(held_out.sample_shape), len(held_out))
    ours = observe(in_batches(data, BATCH), data.labels, judges, pixels=most)
    real = observe(in_batches(held_out, BATCH), held_out.labels, judges, pixels=most_held_out)
    return quality_of(ours, real, fewer(train.labels, data.labels), train)


def quality_of(data: Observed, held_out: Observed, matched: Tensor, train: ImageData) -> Quality:
    """Every figure of what a pass has kept.

    Args:
        data: samples, or training images.
        held_out: real images.
        matched: [C], of how many samples per class fd_matched is; at most as many as `data` has.
        train: the training images, which pass by once.
    """
    generator = torch.Generator().manual_seed(0)
    like_train = [class_matched(data.labels, matched, generator) for _ in range(DRAWS)]
    equal = fewer(data.pixels.labels, held_out.pixels.labels)
    like_held_out = [class_matched(data.pixels.labels, equal, generator) for _ in range(DRAWS)]
    spaces = list(zip(data.spaces, held_out.spaces, strict=True))
    return Quality(
        fd=mean(frechet_distance(ours.moments.gaussian(), theirs.moments.gaussian()) for ours, theirs in spaces),
        fd_matched=mean(frechet(ours.pooled[draw], theirs.moments) for ours, theirs in spaces for draw in like_train),
        accuracy=mean(accuracy(ours, data.labels) for ours in data.spaces),
        std=within_class_std(data.pixels),
        precision=inside_balls(data.flat, held_out.flat, neighbours=NEIGHBOURS),
        recall=mean(inside_balls(held_out.flat, data.flat[draw], neighbours=NEIGHBOURS) for draw in like_held_out),
        nearest=nearest_train(data, train),
    )


def nearest_train(data: Observed, train: ImageData, batch: int = BATCH) -> float:
    """`median_nearest` of the pixels that were kept, fewer where the budget says so, to all training images."""
    width = data.flat.shape[1]
    most = max(1, NEAREST_BUDGET // (width * len(train)))
    return median_nearest(data.flat[some_of(len(data.flat), most)], in_batches(train, batch))


def accuracy(space: FeatureSet, labels: Tensor) -> float:
    """Share of images to which a judge gives their label; needs the logits of all."""
    if space.logits is None:
        raise ValueError("space must hold logits, got one that was gathered without them")
    return float((space.logits.argmax(1) == labels).float().mean())
