import numpy as np
import pytest
import scipy.linalg
import torch

from domains.imagenet import judge as judge_module
from domains.imagenet.digits import LabelledImages, digits_splits
from domains.imagenet.judge import augmented, train_judge
from domains.imagenet.quality import (
    class_matched,
    frechet_distance,
    inside_balls,
    measure,
    median_nearest,
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
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_shift_is_its_square():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2.0) == pytest.approx(5 * 4.0, rel=1e-5)


def test_within_class_std_ignores_what_differs_between_classes():
    labels = torch.tensor([0, 0, 1, 1])
    images = torch.tensor([0.0, 2.0, 100.0, 102.0]).view(4, 1, 1, 1)
    assert within_class_std(LabelledImages(images, labels)) == pytest.approx(2**0.5)


def test_balls_reach_the_fifth_neighbour():
    centres = torch.arange(20.0).view(-1, 1)  # the outermost centre's fifth neighbour is 5 away, a middle one's 3
    assert inside_balls(torch.tensor([[-5.0], [24.0], [9.5]]), centres) == 1
    assert inside_balls(torch.tensor([[-5.1], [24.1]]), centres) == 0


def test_median_nearest_of_copies_is_zero():
    points = torch.randn(10, 3)
    assert median_nearest(points, torch.cat([points, torch.zeros(1, 3)])) == pytest.approx(0, abs=1e-6)


def test_class_matched_draws_the_reference_proportions():
    data = LabelledImages(torch.zeros(30, 1, 8, 8), torch.arange(30) % 3)
    like = LabelledImages(torch.zeros(5, 1, 8, 8), torch.tensor([0, 0, 1, 2, 2]))
    index = class_matched(data, like, torch.Generator().manual_seed(0))
    assert data.labels[index].bincount().tolist() == [2, 1, 2]
    assert len(index.unique()) == 5
    with pytest.raises(ValueError, match="data must hold at least 1 samples of class 1, got 0"):
        class_matched(data.subset(data.labels != 1), like, torch.Generator())


def test_training_images_score_as_real(splits, judges):
    quality = measure(splits.train, splits.test, splits.train, judges)
    assert quality.accuracy > 0.8  # a judge of 150 steps
    assert quality.precision > 0.94
    assert quality.recall > 0.94
    assert quality.nearest == pytest.approx(0, abs=1e-3)  # they are copies of the training images


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


def test_judges_depend_on_data_and_seed_alone(splits, monkeypatch):
    monkeypatch.setattr(judge_module, "STEPS", 3)
    torch.manual_seed(0)
    one = train_judge(splits.train, 5)
    torch.manual_seed(1)
    other = train_judge(splits.train, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    third = train_judge(splits.train, 6)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_augmentation_moves_images_by_what_it_says(splits):
    images = splits.train.images[:50]
    still = augmented(images, torch.Generator().manual_seed(0), degrees=0, shift_pixels=0, scale=0, noise=0)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    noisy = augmented(images, torch.Generator().manual_seed(0), degrees=0, shift_pixels=0, scale=0, noise=0.3)
    assert (noisy - images).std() == pytest.approx(0.3, rel=0.05)
