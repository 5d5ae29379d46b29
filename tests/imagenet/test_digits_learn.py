"""The claim of the README on one seed and half the steps: that one-step samples come close to real images."""

import json

import pytest
from omegaconf import OmegaConf

from domains.imagenet import train
from domains.imagenet.config import CONFIGS, ImagenetConfig
from drifting.training.config import typed


@pytest.mark.slow
def test_digits_come_close_to_real_images(tmp_path):
    settings = OmegaConf.load(CONFIGS / "experiment" / "digits.yaml")
    overrides = {
        "run": {"name": "learn", "steps": 700, "root": str(tmp_path)},
        "eval": {"alphas": [1.0], "judges": 2, "split": "validation"},
    }
    train.main.__wrapped__(typed(OmegaConf.merge(settings, overrides), ImagenetConfig))
    figures = json.loads((tmp_path / "learn" / "metrics.json").read_text())["rows"]["alpha 1"]
    assert figures["FD(judge) / real"] < 1.2
    assert figures["accuracy"] > 0.95
    assert 0.93 < figures["std / real"] < 1.05
    assert figures["precision"] > 0.9
    assert figures["recall"] > 0.9
    assert figures["nearest / real"] > 0.93
