import copy

import pytest
import torch

from domains.imagenet.data.digits import IMAGE_SHAPE, NUM_CLASSES, TEST_PER_CLASS, digits_splits
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.data.shuffled_epochs import ShuffledEpochs
from domains.imagenet.real_samples import RealSamples


@pytest.fixture(scope="module")
def splits():
    return digits_splits()


def real_samples(data, **overrides):
    settings = {"num_classes": 10, "per_class": 40, "unconditional": 100, "num_positive": 32, "num_unconditional": 16}
    return RealSamples(data, seed=3, **(settings | overrides))


def test_splits_hold_every_image_once(splits):
    together = torch.cat([splits.train.images, splits.validation.images, splits.test.images]).flatten(1)
    assert together.shape == (1797, 64)
    assert len(together.unique(dim=0)) == 1797  # no digit occurs twice in the source, so none is in two splits
    assert splits.train.images.shape[1:] == IMAGE_SHAPE
    assert splits.test.labels.bincount().tolist() == [TEST_PER_CLASS] * NUM_CLASSES


def test_pixels_are_the_seventeen_grey_levels(splits):
    assert splits.train.images.unique().tolist() == [level / 8 - 1 for level in range(17)]


def test_splits_are_the_same_every_time(splits):
    assert torch.equal(digits_splits().train.images, splits.train.images)


def test_an_epoch_takes_every_index_once_and_continues_exactly():
    epochs = ShuffledEpochs(10, seed=0)
    first = epochs.take(10)
    assert first.sort().values.tolist() == list(range(10))
    state = epochs.state_dict()
    expected = [epochs.take(7), epochs.take(7)]
    resumed = ShuffledEpochs(10, seed=1)
    resumed.load_state_dict(state)
    assert all(torch.equal(resumed.take(7), indices) for indices in expected)
    with pytest.raises(ValueError, match="of 10 samples, the data set has 11"):
        ShuffledEpochs(11, seed=0).load_state_dict(state)


def test_positives_have_their_label_and_do_not_repeat(splits):
    real = real_samples(splits.train)
    labels = torch.tensor([7, 2, 7])
    positives, unconditional = real.draw(labels)
    assert positives.shape == (3, 32, *IMAGE_SHAPE)
    assert unconditional.shape == (3, 16, *IMAGE_SHAPE)
    for label, block in zip(labels, positives, strict=True):
        members = splits.train.images[splits.train.labels == label].flatten(1)
        assert torch.cdist(block.flatten(1), members).amin(1).max() == 0


def test_real_samples_continue_exactly(splits):
    real = real_samples(splits.train)
    real.push(64)
    state = copy.deepcopy(real.state_dict())
    real.push(64)
    expected = real.draw(torch.arange(10))
    resumed = real_samples(splits.train)
    resumed.load_state_dict(state)
    resumed.push(64)
    assert all(torch.equal(a, b) for a, b in zip(resumed.draw(torch.arange(10)), expected, strict=True))


def test_a_class_without_data_is_named(splits):
    without_four = splits.train.subset(splits.train.labels != 4)
    with pytest.raises(DataError, match=r"num_positive=32 images: 4 \(0\)\. Add images"):
        real_samples(without_four)
    with pytest.raises(DataError, match=r"10 \(0\)"):
        real_samples(splits.train, num_classes=11)
    with pytest.raises(DataError, match="the data have 10 classes, the generator only 9"):
        real_samples(splits.train, num_classes=9)


def test_subset_keeps_images_and_labels_together():
    data = LabelledImages(torch.arange(4.0).view(4, 1, 1, 1), torch.arange(4))
    part = data.subset(torch.tensor([2, 0]))
    assert part.images.flatten().tolist() == [2.0, 0.0]
    assert part.labels.tolist() == [2, 0]
