"""Distances, moments, Inception score, precision and recall: their mathematics and other implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from domains.imagenet.metrics.frechet import Gaussian, frechet_distance
from domains.imagenet.metrics.inception_score import inception_score
from domains.imagenet.metrics.kernel_distance import kernel_distance
from domains.imagenet.metrics.moments import Moments
from domains.imagenet.metrics.precision_recall import inside_balls, precision_recall


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    mixing = torch.randn(width, width, generator=seeded(seed + 100))
    return torch.randn(count, width, generator=seeded(seed)) @ mixing + 3


@pytest.mark.parametrize("count", [400, 20])  # 20 samples of 32 features: covariances without an inverse
def test_frechet_distance_is_scipys(count):
    x, y = features(count, 32, 0), features(300, 32, 1)
    a, b = x.double().numpy(), y.double().numpy()
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    found = frechet_distance(Moments.of(x).gaussian(), Moments.of(y).gaussian())
    assert found == pytest.approx(expected, rel=1e-6 if count < 32 else 1e-10)


def test_frechet_distance_of_equal_and_of_shifted_sets():
    x = features(200, 16)
    own = Moments.of(x).gaussian()
    assert frechet_distance(own, own) == pytest.approx(0, abs=1e-9)
    shifted = Moments.of(x.double() + 2.5).gaussian()
    assert frechet_distance(shifted, own) == pytest.approx(16 * 2.5**2, rel=1e-9)


def test_frechet_distance_of_scaled_gaussians_is_known():
    identity = torch.eye(5, dtype=torch.float64)
    zero = torch.zeros(5, dtype=torch.float64)
    # tr(4 I + I - 2 * 2 I) = 5
    assert frechet_distance(Gaussian(zero, 4 * identity), Gaussian(zero, identity)) == pytest.approx(5)


def test_gaussians_refuse_what_is_none():
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\[d\] and \[d, d\], got mean \(3,\) and covariance \(2, 2\)"):
        Gaussian(mean, covariance[:2, :2])
    with pytest.raises(ValueError, match="covariance must be float64"):
        Gaussian(mean, covariance.float())
    with pytest.raises(ValueError, match="mean must be finite"):
        Gaussian(mean / 0, covariance)
    with pytest.raises(ValueError, match="x must have 3 features as y has, got 2"):
        frechet_distance(Gaussian(mean[:2], covariance[:2, :2]), Gaussian(mean, covariance))


def test_merged_moments_of_parts_are_those_of_the_whole():
    x = features(101, 7) + 1e4  # a sum of squares would lose this
    parts = [Moments.of(part) for part in x.split([1, 50, 20, 30])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    assert merged.count == 101
    np.testing.assert_allclose(merged.mean, x.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.gaussian().covariance, np.cov(x.double().numpy().T), rtol=1e-9)


def test_moments_refuse_what_has_none():
    with pytest.raises(ValueError, match="n >= 1"):
        Moments.of(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        Moments.of(torch.zeros(1, 3)).gaussian()
    with pytest.raises(ValueError, match="other must have 3 features, got 2"):
        Moments.of(torch.zeros(2, 3)).merged(Moments.of(torch.zeros(2, 2)))


@pytest.mark.parametrize("protocol", ["adm", "authors"])
def test_inception_score_of_known_predictions(protocol):
    assert inception_score(torch.zeros(100, 10), protocol) == pytest.approx(1)
    certain = 1000.0 * torch.eye(10).repeat(500, 1)
    # every part of the permutation holds the classes in slightly unequal numbers
    assert inception_score(certain, protocol) == pytest.approx(10, rel=1e-12 if protocol == "adm" else 0.03)


def test_inception_score_of_the_authors_is_torch_fidelitys():
    logits = 2 * torch.randn(1003, 12, generator=seeded())
    expected = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)["inception_score_mean"]
    assert inception_score(logits, "authors") == pytest.approx(expected, rel=1e-12)


def test_inception_score_of_adm_takes_parts_of_5000_in_order():
    logits = 2 * torch.randn(7000, 4, generator=seeded())
    parts = [
        isc_features_to_metric(part, splits=1, shuffle=False)["inception_score_mean"] for part in logits.split(5000)
    ]
    assert inception_score(logits, "adm") == pytest.approx(sum(parts) / 2, rel=1e-12)
    with pytest.raises(ValueError, match="protocol must be one of adm, authors, got 'other'"):
        inception_score(logits, "other")
    with pytest.raises(ValueError, match="at least 10 samples, got 9"):
        inception_score(logits[:9], "authors")


def test_kernel_distance_is_unbiased_about_zero_and_sees_a_shift():
    values = [
        kernel_distance(
            torch.randn(200, 8, generator=seeded(2 * seed)),
            torch.randn(200, 8, generator=seeded(2 * seed + 1)),
            subsets=1,
        )
        for seed in range(40)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0
    x = torch.randn(200, 8, generator=seeded())
    assert kernel_distance(x + 1, x, subsets=5) > 20 * np.std(values)


def test_kernel_distance_is_the_formula():
    x, y = features(30, 4, 0), features(30, 4, 1)
    kernel = lambda a, b: (a.double() @ b.double().T / 4 + 1) ** 3  # noqa: E731
    off = ~torch.eye(30, dtype=torch.bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    assert kernel_distance(x, y, subsets=1) == pytest.approx(float(expected), rel=1e-9)


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    x = torch.randn(60, 5, generator=seeded())
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_precision_falls_with_strays_and_recall_with_what_is_missing():
    real = torch.cat([torch.randn(50, 3, generator=seeded()), torch.randn(50, 3, generator=seeded(1)) + 50])
    half = real[:50]  # one mode of two, exactly
    assert precision_recall(half, real) == (1, 0.5)
    strays = torch.cat([real, torch.full((100, 3), 500.0)])
    precision, recall = precision_recall(strays, real)
    assert precision == 0.5
    assert recall == 1


def test_precision_and_recall_do_not_depend_on_how_many_distances_are_held():
    generated, real = features(90, 6, 0), features(70, 6, 1)
    whole = precision_recall(generated, real)
    assert precision_recall(generated, real, at_once=200) == whole
    assert 0 < whole[0] < 1


def test_precision_is_torch_fidelitys():
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = features(90, 6, 0), features(70, 6, 0) * 1.1
    expected = prc_features_to_metric(generated, real, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    found = precision_recall(generated, real)
    assert found == pytest.approx((expected["precision"], expected["recall"]))


def test_balls_reach_the_fifth_neighbour():
    centres = torch.arange(20.0).view(-1, 1)  # the outermost centre's fifth neighbour is 5 away, a middle one's 3
    assert inside_balls(torch.tensor([[-5.0], [24.0], [9.5]]), centres, neighbours=5) == 1
    assert inside_balls(torch.tensor([[-5.1], [24.1]]), centres, neighbours=5) == 0
    with pytest.raises(ValueError, match=r"neighbours must be in 1..19 for 20 centres, got 20"):
        inside_balls(centres, centres, neighbours=20)
