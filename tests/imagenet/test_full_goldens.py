"""The complete golden files, which are too large for the repository: set DRIFTING_GOLDENS to their folder.

Besides what the small copies hold: what the authors' generator drew and made itself, every activation, both losses, the
accuracy and the gradient through all features of the latent and the pixel auto-encoder. `python -m benchmarks.parity`
prints the same comparisons as a table.
"""

import os
from pathlib import Path

import pytest
from golden_comparisons import assert_all_hold, autoencoder_comparisons, generator_comparisons
from golden_networks import load_arrays
from golden_train_step import train_step_comparisons

FOLDER = os.environ.get("DRIFTING_GOLDENS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="DRIFTING_GOLDENS does not name the folder of the full goldens")


def load(name: str):
    return load_arrays(Path(FOLDER) / f"{name}.npz")


@pytest.mark.parametrize("case", ["latent", "pixel", "plain", "lnqk"])
def test_generator(case):
    comparisons = list(generator_comparisons(load(f"gen_{case}"), case))
    assert len(comparisons) > 30
    assert_all_hold(comparisons)


@pytest.mark.parametrize("case", ["latent", "pixel"])
def test_autoencoder(case):
    comparisons = list(autoencoder_comparisons(load(f"mae_{case}"), case))
    assert len(comparisons) > 41
    assert_all_hold(comparisons)


def test_train_step():
    assert_all_hold(list(train_step_comparisons(load("train_step"))))
