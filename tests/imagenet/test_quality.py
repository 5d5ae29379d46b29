import numpy as np
import pytest
import scipy.linalg
import torch

from domains.imagenet import judge as judge_module
from domains.imagenet import quality as quality_module
from domains.imagenet.data.digits import digits_splits
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.judge import train_judge
from domains.imagenet.metrics.image_batches import in_batches
from domains.imagenet.metrics.moments import Moments
from domains.imagenet.quality import (
    class_matched,
    fewer,
    frechet,
    measure,
    median_nearest,
    observe,
    pixel_counts,
    within_class_std,
)


@pytest.fixture(scope="module")
def splits():
    return digits_splits()


@pytest.fixture(scope="module")
def judges(splits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "STEPS", 150)
        return [train_judge(splits.train, seed) for seed in (1, 2)]


def test_frechet_distance_is_the_formula_in_another_implementation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    y = 1.5 * torch.randn(200, 8, generator=generator) + 0.3
    a, b = x.double().numpy(), y.double().numpy()
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    assert frechet(x, Moments.of(y)) == pytest.approx(expected, rel=1e-8)


def test_within_class_std_ignores_what_differs_between_classes():
    labels = torch.tensor([0, 0, 1, 1, 3])  # none of class 2, one of class 3
    images = torch.tensor([0.0, 2.0, 100.0, 102.0, 7.0]).view(5, 1, 1, 1)
    assert within_class_std(LabelledImages(images, labels)) == pytest.approx(2**0.5)


def test_median_nearest_of_copies_is_zero_in_whatever_batches():
    points = torch.randn(11, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    batches = torch.cat([points, torch.zeros(1, 1, 1, 3)]).split(5)
    assert median_nearest(points.flatten(1), batches) == pytest.approx(0, abs=1e-6)
    apart = median_nearest(points.flatten(1), (points + torch.tensor([100.0, 0, 0])).split(4))
    assert apart == pytest.approx(
        torch.cdist(points.flatten(1), points.flatten(1) + torch.tensor([100.0, 0, 0])).amin(1).median()
    )


def test_class_matched_draws_the_counts_that_are_asked_for():
    labels = torch.arange(30) % 3
    index = class_matched(labels, torch.tensor([2, 1, 2]), torch.Generator().manual_seed(0))
    assert labels[index].bincount().tolist() == [2, 1, 2]
    assert len(index.unique()) == 5
    with pytest.raises(ValueError, match="at least 1 of class 1, got 0"):
        class_matched(labels[labels != 1], torch.tensor([2, 1, 2]), torch.Generator())
    assert fewer(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1, 2])).tolist() == [1, 1, 0]


def test_training_images_score_as_real(splits, judges):
    quality = measure(splits.train, splits.test, splits.train, judges)
    assert quality.accuracy > 0.8  # a judge of 150 steps
    assert quality.precision > 0.94
    assert quality.recall > 0.94
    assert quality.nearest == pytest.approx(0, abs=1e-3)  # they are copies of the training images
    assert quality.fd_matched == pytest.approx(quality.fd, rel=1e-6)  # all of them, drawn


def test_a_collapsed_model_is_not_mistaken_for_a_good_one(splits, judges):
    """It returns the class mean: perfect accuracy and precision, and nothing else."""
    labels = torch.arange(10).repeat_interleave(120)
    means = torch.stack([splits.train.images[splits.train.labels == label].mean(0) for label in range(10)])
    collapsed = LabelledImages(means[labels] + 0.01 * torch.randn(1200, 1, 8, 8), labels)
    quality = measure(collapsed, splits.test, splits.train, judges)
    real = measure(splits.train, splits.test, splits.train, judges)
    assert quality.accuracy > real.accuracy
    assert quality.fd > 5 * real.fd
    assert quality.std < 0.1 * real.std
    assert quality.recall < 0.1


def test_large_sets_are_compared_in_part_and_the_digits_whole(splits, judges, monkeypatch):
    assert min(pixel_counts(64, 500)) == 500
    assert pixel_counts(64, 500)[0] > 50_000
    assert pixel_counts(3 * 64 * 64, 3925) == (1672, 1672)
    monkeypatch.setattr(quality_module, "PIXEL_BUDGET", 64 * 100 * 100)
    assert pixel_counts(64, 500) == (100, 100)
    whole = observe(in_batches(splits.test, 64), splits.test.labels, judges, pixels=100)
    assert len(whole.labels) == whole.spaces[0].moments.count == 500
    assert len(whole.pixels) == 100
    # the pixels that were kept are those of their labels
    where = torch.cdist(whole.flat, splits.test.images.flatten(1)).argmin(1)
    assert torch.equal(splits.test.labels[where], whole.pixels.labels)
    for labels in (splits.test.labels[1:], splits.test.labels.repeat(2)):
        with pytest.raises(ValueError, match="labels must be one for each image, got"):
            observe(in_batches(splits.test, 64), labels, judges, pixels=100)
