"""Linear accuracy tells features that hold the classes from features that do not."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from domains.imagenet.linear_probe import DECAY, linear_accuracy


def clusters(count, distance, *, classes=4, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, width, generator=generator), labels


def test_separable_features_are_told_apart_and_noise_is_not():
    known, unseen = clusters(400, 5.0), clusters(400, 5.0, seed=1)
    assert linear_accuracy(*known, *unseen, 4) == 1.0
    noise = linear_accuracy(*clusters(400, 0.0), *clusters(4000, 0.0, seed=1), 4)
    assert noise == pytest.approx(0.25, abs=0.04)
    assert noise < linear_accuracy(*clusters(400, 0.3), *clusters(4000, 0.3, seed=1), 4) < 1.0


def test_the_scale_and_offset_of_features_do_not_matter():
    (known, labels), (unseen, others) = clusters(300, 0.4), clusters(1000, 0.4, seed=1)
    stretch = torch.logspace(-3, 3, 16)
    plain = linear_accuracy(known, labels, unseen, others, 4)
    assert linear_accuracy(known * stretch + 7, labels, unseen * stretch + 7, others, 4) == pytest.approx(
        plain, abs=0.005
    )
    constant = torch.full((300, 1), 3.0), torch.full((1000, 1), 3.0)  # a dead feature
    joined = [torch.cat(pair, dim=1) for pair in ((known, constant[0]), (unseen, constant[1]))]
    assert linear_accuracy(joined[0], labels, joined[1], others, 4) == pytest.approx(plain, abs=0.005)


def test_it_is_the_logistic_regression_of_scikit_learn():
    (known, labels), (unseen, others) = clusters(300, 0.4), clusters(1000, 0.4, seed=1)
    centre, deviation = known.mean(0), known.std(0, correction=0)
    peer = LogisticRegression(C=1 / (2 * DECAY * len(known)), max_iter=1000, tol=1e-6)
    peer.fit(((known - centre) / deviation).numpy(), labels.numpy())
    expected = peer.score(((unseen - centre) / deviation).numpy(), others.numpy())
    assert linear_accuracy(known, labels, unseen, others, 4) == pytest.approx(expected, abs=0.003)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"train must be \[N, D\] with one label each"):
        linear_accuracy(torch.zeros(3, 2), torch.zeros(2).long(), torch.zeros(1, 2), torch.zeros(1).long(), 2)
    with pytest.raises(ValueError, match=r"held_out must be"):
        linear_accuracy(torch.zeros(3, 2), torch.zeros(3).long(), torch.zeros(0, 2), torch.zeros(0).long(), 2)
