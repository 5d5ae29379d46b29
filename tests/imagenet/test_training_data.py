"""Data sets behind one interface, and the queues that they fill."""

import copy
import gzip
import struct

import pytest
import torch

from domains.imagenet.data.fashion_mnist import CLASSES, VALIDATION_PER_CLASS, fashion_mnist
from domains.imagenet.data.image_data import DataError, ImageData, to_float
from domains.imagenet.data.labelled_images import LabelledImages, in_memory
from domains.imagenet.data.section import DataSection, load_images, load_training_data, missing_data, missing_images
from domains.imagenet.missing import Missing, refuse_missing
from domains.imagenet.real_samples import RealSamples
from drifting.training.draws import stream
from drifting.training.errors import ConfigError


def write_idx(path, tensor, *, packed=True):
    content = bytes((0, 0, 8, tensor.ndim)) + struct.pack(f">{tensor.ndim}I", *tensor.shape) + tensor.numpy().tobytes()
    if packed:
        content = gzip.compress(content, compresslevel=1)
    path.with_name(path.name + (".gz" if packed else "")).write_bytes(content)


@pytest.fixture
def clothes(tmp_path):
    """600 training images of each class in order of the class, image k all of value k % 251; one test image a class."""
    labels = torch.arange(10).repeat_interleave(600)
    images = (torch.arange(6000) % 251).view(-1, 1, 1).expand(-1, 28, 28)
    write_idx(tmp_path / "train-images-idx3-ubyte", images.to(torch.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels.to(torch.uint8))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images[::600].to(torch.uint8), packed=False)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels[::600].to(torch.uint8), packed=False)
    return tmp_path


def test_fashion_mnist_keeps_the_last_images_of_every_class_for_validation(clothes):
    train, validation, test = (fashion_mnist(split, str(clothes)) for split in ("train", "validation", "test"))
    assert train.labels.bincount().tolist() == [600 - VALIDATION_PER_CLASS] * 10
    assert validation.labels.bincount().tolist() == [VALIDATION_PER_CLASS] * 10
    values = (torch.arange(6000) % 251).view(10, 600)
    assert train.images[:, 0, 0, 0].tolist() == values[:, : 600 - VALIDATION_PER_CLASS].flatten().tolist()
    assert validation.images[:, 0, 5, 9].tolist() == values[:, -VALIDATION_PER_CLASS:].flatten().tolist()
    assert (len(test), train.sample_shape, train.dtype, train.classes) == (10, (1, 28, 28), torch.uint8, CLASSES)


def test_a_cut_or_foreign_file_is_named(clothes):
    section = DataSection(kind="fashion_mnist", path=str(clothes))
    assert missing_data(section) == []
    images = clothes / "t10k-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is no idx file of 3 dimensions, or is cut"):
        load_images(section, "test")
    images.write_bytes(bytes((0, 0, 13, 3)) + whole[4:])
    with pytest.raises(DataError, match="is no idx file"):
        load_images(section, "test")
    packed = clothes / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is damaged"):
        load_training_data(section)
    images.unlink()
    assert "apt install" in missing_data(section)[0].command


def test_everything_that_is_missing_is_said_together(tmp_path):
    pixels = DataSection(kind="pixels", path=str(tmp_path / "a.zarr"), size=64)
    missing = [*missing_data(pixels), *missing_images(pixels, "validation"), Missing("vae.path", "no weights", "get x")]
    with pytest.raises(ConfigError, match="3 things are missing") as refused:
        refuse_missing(missing)
    message = str(refused.value)
    assert "pack_images folder=FOLDER" in message
    assert "data.validation: no folder ''" in message
    assert "get x" in message
    refuse_missing([])
    assert missing_data(DataSection()) == missing_images(DataSection(), "test") == []


def test_sections_refuse_what_cannot_be():
    for wrong, message in (
        ({"kind": "cats"}, "data.kind must be digits or"),
        ({"kind": "folder"}, "data.path must be the training set"),
        ({"crop": "middle"}, "data.crop must be"),
        ({"posterior": "best"}, "data.posterior must be"),
    ):
        with pytest.raises(ValueError, match=message):
            DataSection(**wrong)
    with pytest.raises(DataError, match=r"has 10 classes .* expected data.num_classes=1000"):
        load_training_data(DataSection(num_classes=1000))


def test_bytes_become_the_interval_from_minus_one_to_one():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    floats = torch.tensor([0.3, 7.0])
    assert to_float(floats) is floats


class Flipping(ImageData):
    """uint8 images of one row (k, 100 + k), of which a generator flips half; counts what was read."""

    def __init__(self, size=40):
        self.labels = torch.arange(size) % 4
        self.classes, self.sample_shape, self.dtype, self.fingerprint = (
            ("a", "b", "c", "d"),
            (1, 1, 2),
            torch.uint8,
            "f",
        )
        self.was_read = 0

    def read(self, indices, generator=None):
        self.was_read += len(indices)
        rows = torch.stack([indices, 100 + indices], dim=1).to(torch.uint8)
        if generator is not None:
            flipped = torch.rand(len(indices), generator=generator) < 0.5
            rows[flipped] = rows[flipped].flip(1)
        return rows.view(-1, 1, 1, 2)


def queues(data, **overrides):
    settings = {"num_classes": 4, "per_class": 6, "unconditional": 12, "num_positive": 5, "num_unconditional": 3}
    return RealSamples(data, seed=3, **(settings | overrides))


def numbers(block):
    """Which image each sample is, whether flipped or not."""
    return block.flatten(2).min(-1).values.long()


def test_queues_are_full_before_the_first_step_and_read_no_more_than_they_keep():
    data = Flipping()
    real = queues(data)
    assert data.was_read == 0  # a run that goes on has no use for it
    real.fill(), real.fill()
    assert real.positives.count.tolist() == [6] * 4
    assert real.unconditional.count.tolist() == [12]
    assert data.was_read == 4 * 6 + 12
    assert real.positives.samples.dtype == torch.uint8


@pytest.mark.parametrize("holds", ["samples", "indices"])
def test_draws_are_distinct_images_of_the_class_some_of_them_flipped(holds):
    real = queues(Flipping(), holds=holds)
    labels = torch.tensor([2, 0])
    positives, unconditional = real.draw(labels, [stream(0, "real", 1, k) for k in range(2)])
    assert (positives.shape, unconditional.shape) == ((2, 5, 1, 1, 2), (2, 3, 1, 1, 2))
    assert (numbers(positives) % 4 == labels[:, None]).all()
    assert all(len(set(row)) == 5 for row in numbers(positives).tolist())
    first = positives.flatten(0, 1).flatten(1)[:, 0]
    assert 0 < (first >= 100).sum() < 10


def test_indices_are_read_again_with_other_flips():
    real = queues(Flipping(), holds="indices")
    assert real.positives.samples.shape == (4, 6)
    flips = {tuple((real.draw(torch.tensor([1]))[0].flatten() >= 100).tolist()) for _ in range(8)}
    assert len(flips) > 1


@pytest.mark.parametrize("holds", ["samples", "indices"])
def test_a_run_goes_on_with_the_same_draws_and_refuses_other_data(holds):
    real = queues(Flipping(), holds=holds)
    real.push(8)
    state = copy.deepcopy(real.state_dict())
    labels = torch.arange(4)

    def go_on(real):
        real.push(8)
        return real.draw(labels)

    expected = go_on(real)
    resumed = queues(Flipping(), holds=holds)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(go_on(resumed), expected, strict=True))
    other = Flipping()
    other.fingerprint = "g"
    with pytest.raises(ValueError, match="other training data"):
        queues(other, holds=holds).load_state_dict(state)


def test_what_is_read_ahead_changes_nothing():
    one, other = queues(Flipping()), queues(Flipping())
    one.push(8), one.push(8)
    other.push(8), other.push(3), other.load_state_dict(copy.deepcopy(one.state_dict()))
    one.push(5), other.push(5)  # of another size than what was being read
    assert torch.equal(one.positives.samples, other.positives.samples)
    assert torch.equal(one.newest_labels, other.newest_labels)


def test_every_image_comes_once_an_epoch_whatever_the_sizes_of_pushes():
    data = Flipping()
    real = queues(data, per_class=10, unconditional=40)  # the fill took the first epoch
    for n in (8, 8, 3, 21):
        real.push(n)
    assert numbers(real.unconditional.samples).flatten().sort().values.tolist() == list(range(40))


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="num_unconditional=41 is more than the 40 images"):
        queues(Flipping(), unconditional=41, num_unconditional=41)
    with pytest.raises(DataError, match=r"num_positive=11 images: 0 \(10\)"):
        queues(Flipping(), num_positive=11, per_class=11)


def test_images_in_memory():
    data = LabelledImages(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0, 1]))
    assert in_memory(data).images.flatten().tolist() == [1, 1]
    assert data.fingerprint != LabelledImages(data.images - 1, data.labels).fingerprint
    with pytest.raises(ValueError, match="labels must be one for each of 2"):
        LabelledImages(data.images, data.labels[:1])
