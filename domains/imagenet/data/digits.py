"""scikit-learn's handwritten digits: real images that ship inside a wheel, so that everything runs without a network.

1797 images of 8 x 8 pixels with 17 grey levels, ten classes (UCI optical recognition of handwritten digits, BSD).
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from domains.imagenet.data.labelled_images import LabelledImages

NUM_CLASSES = 10
IMAGE_SHAPE = (1, 8, 8)
SPLIT_SEED = 0
VALIDATION_PER_CLASS = 30
TEST_PER_CLASS = 50


@dataclass(frozen=True, slots=True)
class DigitsSplits:
    """Disjoint splits, drawn per class: train about 100 a class, validation 30, test 50.

    Settings are chosen on validation images; test images serve the final report alone.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def digits_splits() -> DigitsSplits:
    """The fixed splits; the same on every machine."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, *IMAGE_SHAPE) / 8 - 1  # grey levels 0..16
    labels = torch.from_numpy(digits).long()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts: list[list[Tensor]] = [[], [], []]
    for label in range(NUM_CLASSES):
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        sizes = [TEST_PER_CLASS, VALIDATION_PER_CLASS, len(members) - TEST_PER_CLASS - VALIDATION_PER_CLASS]
        for part, index in zip(parts, members.split(sizes), strict=True):
            part.append(index)
    test, validation, train = (torch.cat(part) for part in parts)
    data = LabelledImages(images, labels)
    return DigitsSplits(train=data.subset(train), validation=data.subset(validation), test=data.subset(test))
