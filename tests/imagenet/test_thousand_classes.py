"""A thousand classes from an archive to a training step and a stream of samples: set DRIFTING_ONE_PER_CLASS to it.

The archive (tar) holds one picture of each class of ImageNet as <wnid>/<picture>, which no repository may ship.
"""

import os
import tarfile
from pathlib import Path

import pytest
import torch

from domains.imagenet import pack_images, train
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.pixel_store import PixelStore
from domains.imagenet.pack_images import PackImagesConfig
from domains.imagenet.sample_stream import SampleStream, balanced_labels, first_of_classes
from domains.imagenet.sampling import load_generator
from drifting.training.config import typed
from drifting.training.metrics_log import read_metrics

ARCHIVE = os.environ.get("DRIFTING_ONE_PER_CLASS")
CLASSES = 1000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ARCHIVE is None, reason="DRIFTING_ONE_PER_CLASS does not name a tar of one image per class"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The pictures at 16 x 16."""
    root = tmp_path_factory.mktemp("thousand")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root / "images", filter="data")
    settings = {"folder": str(root / "images"), "out": str(root / "train.zarr"), "size": 16, "classes": CLASSES}
    pack_images.main.__wrapped__(PackImagesConfig(**settings, workers=1))
    return root / "train.zarr"


def config_of(store: Path, root: Path) -> ImagenetConfig:
    dit = {"channels": 3, "size": 16, "patch": 8, "hidden": 16, "depth": 1, "heads": 2, "num_classes": CLASSES}
    settings = {
        "run": {"name": "thousand", "steps": 1, "root": str(root), "device": "cpu"},
        "data": {"kind": "pixels", "path": str(store), "num_classes": CLASSES},
        "generator": {"kind": "dit", "dit": dit},
        "encoder": {"kind": "pixels"},
        "drift": {"classes_per_step": 64, "num_generated": 4, "num_positive": 1, "num_unconditional": 8},
        "queue": {"per_class": 1, "unconditional": 100, "push_per_step": 64},
        "log": {"every": 1},
        "eval": {"samples_per_class": 1, "neighbours": 0},
    }
    return typed(settings, ImagenetConfig)


def test_labels_are_the_wnids_in_their_order(store):
    data = PixelStore(store)
    folders = sorted(path.name for path in (store.parent / "images").iterdir())
    assert len(folders) == CLASSES
    assert data.classes == tuple(folders)
    assert data.classes[0] == "n01440764"  # tench, label 0 of ImageNet
    assert data.classes[207] == "n02099601"  # golden retriever
    assert data.classes[999] == "n15075141"  # toilet tissue
    assert data.labels.tolist() == list(range(CLASSES))
    assert data.read(torch.arange(CLASSES)).float().std((1, 2, 3)).min() > 0


def test_a_step_with_one_positive_and_class_balanced_samples(store, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    monkeypatch.setattr(train, "missing_measures", lambda *_: [])  # no held-out images, no report
    monkeypatch.setattr(train, "images_read", lambda *_: {})
    train.main.__wrapped__(config_of(store, tmp_path))
    [figures] = read_metrics(tmp_path / "thousand")
    assert figures["loss"] > 0
    assert figures["grad_norm"] > 0

    _, generator, step = load_generator(tmp_path / "thousand")
    assert step == 1
    labels = balanced_labels(CLASSES, 2 * CLASSES)
    assert labels.bincount().tolist() == [2] * CLASSES
    stream = SampleStream(generator, labels, torch.uint8, batch=300)
    grid = first_of_classes(labels, CLASSES, 1)
    images = torch.cat(list(stream.at(1.0, grid)))
    assert (images.shape, images.dtype) == ((2 * CLASSES, 3, 16, 16), torch.uint8)
    assert labels[grid].tolist() == list(range(CLASSES))
    assert stream.shown(grid).shape == (CLASSES, 3, 16, 16)
