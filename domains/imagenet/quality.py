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
mean over draws of as many samples of every class as training images. recall depends on the number too: it is a mean
over draws of as many as held-out images, the equal numbers of its authors' protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from domains.imagenet.digits import LabelledImages
from domains.imagenet.judge import Judge

NEIGHBOURS = 5
DRAWS = 5


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


class _Features(nn.Module):
    """Lets torchmetrics take features in place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features x [K, D] and y [L, D]."""
    metric = FrechetInceptionDistance(feature=_Features(x.shape[1])).set_dtype(torch.float64)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    return float(metric.compute())


def within_class_std(data: LabelledImages) -> float:
    """RMS over classes and pixels of the unbiased within-class standard deviation."""
    variances = [data.images[data.labels == label].var(0).mean() for label in data.labels.unique()]
    return float(torch.stack(variances).mean().sqrt())


def inside_balls(points: Tensor, centres: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Share of points [K, D] within the `neighbours`-nearest-neighbour ball of some centre [L, D]."""
    own = torch.cdist(centres, centres)
    radius = own.kthvalue(neighbours + 1, dim=1).values  # a centre is its own first neighbour
    return float((torch.cdist(points, centres) <= radius).any(1).float().mean())


def median_nearest(points: Tensor, others: Tensor) -> float:
    """Median distance of points [K, D] to the nearest of `others` [L, D]."""
    return float(torch.cdist(points, others).amin(1).median())


def class_matched(data: LabelledImages, like: LabelledImages, generator: torch.Generator) -> Tensor:
    """Indices [L] of random images of `data`, as many of every class as `like` has.

    Raises:
        ValueError: a class of which `data` has fewer.
    """
    chosen = []
    for label, count in zip(*like.labels.unique(return_counts=True), strict=True):
        members = (data.labels == label).nonzero().squeeze(1)
        if len(members) < count:
            raise ValueError(f"data must hold at least {count} samples of class {label}, got {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen)


@torch.no_grad()
def measure(data: LabelledImages, held_out: LabelledImages, train: LabelledImages, judges: Sequence[Judge]) -> Quality:
    """Every figure of `data`.

    Args:
        data: samples, at least as many of every class as in `train`; or `train` itself, for what real images score.
        held_out: real images that neither generator nor judges have seen.
        train: the training images of generator and judges.
        judges: trained on `train`.
    """
    pixels, held_out_pixels = data.images.flatten(1), held_out.images.flatten(1)
    features = [(judge.features(data.images), judge.features(held_out.images)) for judge in judges]
    choices = [judge.head(ours).argmax(1) for judge, (ours, _) in zip(judges, features, strict=True)]
    generator = torch.Generator().manual_seed(0)
    like_train = [class_matched(data, train, generator) for _ in range(DRAWS)]
    like_held_out = [class_matched(data, held_out, generator) for _ in range(DRAWS)]
    return Quality(
        fd=mean(frechet_distance(ours, theirs) for ours, theirs in features),
        fd_matched=mean(frechet_distance(ours[draw], theirs) for ours, theirs in features for draw in like_train),
        accuracy=mean(float((choice == data.labels).float().mean()) for choice in choices),
        std=within_class_std(data),
        precision=inside_balls(pixels, held_out_pixels),
        recall=mean(inside_balls(held_out_pixels, pixels[draw]) for draw in like_held_out),
        nearest=median_nearest(pixels, train.images.flatten(1)),
    )
