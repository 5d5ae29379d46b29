"""The complete golden files, which are too large for the repository: set DRIFTING_GOLDENS to their folder.

Besides what the small copies hold: what the authors' generator drew and made itself, every activation, both losses, the
accuracy and the gradient through all features of the latent and the pixel auto-encoder.
"""

import os
from pathlib import Path

import pytest
import torch
from golden_networks import channels_first, generator_from, load_arrays, mae_from, style_of

from domains.imagenet.encoders import MaeFeatures

FOLDER = os.environ.get("DRIFTING_GOLDENS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="DRIFTING_GOLDENS does not name the folder of the full goldens")


def load(name: str):
    return load_arrays(Path(FOLDER) / f"{name}.npz")


@pytest.mark.parametrize("case", ["latent", "pixel", "plain", "lnqk"])
@pytest.mark.parametrize("prefix", ["", "call_"])
def test_generator(case, prefix):
    arrays = load(f"gen_{case}")
    net = generator_from(arrays)
    labels, alpha = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["cfg"])
    style = style_of(arrays, f"{prefix}noise_labels", net)
    samples = net(channels_first(arrays[f"{prefix}x"]), labels, alpha, style)
    torch.testing.assert_close(samples, channels_first(arrays[f"{prefix}samples"]), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", ["latent", "pixel"])
def test_autoencoder(case):
    arrays = load(f"mae_{case}")
    mae = mae_from(arrays)
    images, labels = channels_first(arrays["x"]), torch.from_numpy(arrays["labels"]).long()
    # 0.1 is the weight with which the stored loss was computed
    result = mae(images, labels, classification_weight=0.1, mask=channels_first(arrays["mask"]).bool())
    for ours, name in (
        (result.loss, "loss"),
        (result.reconstruction, "metric/recon_loss"),
        (result.classification, "metric/cls_loss"),
        (result.correct.float(), "metric/accuracy"),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(arrays[name]), rtol=2e-5, atol=0)

    images.requires_grad_()
    features = MaeFeatures(mae, sample_itself=False)(images)
    assert set(features) == {str(key) for key in arrays["keys"]}
    for key, value in features.items():
        theirs = torch.from_numpy(arrays[f"act/{key}"])
        torch.testing.assert_close(value, theirs, rtol=2e-5, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")
    sum(value.square().sum() for value in features.values()).backward()
    theirs = channels_first(arrays["grad_x_sum_sq"])
    torch.testing.assert_close(images.grad, theirs, rtol=2e-5, atol=1e-5 * float(theirs.abs().max()))
