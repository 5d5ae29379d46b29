"""The Inception network with random weights: the published ones are not needed to check what is around them."""

import io

import pytest
import torch
from small_networks import randomized
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from domains.imagenet.metrics import inception as inception_module
from domains.imagenet.metrics.inception import (
    FILE_URL,
    Inception,
    load_inception,
    missing_inception,
    resize_half_pixel,
    resize_tf1,
)
from drifting.training.errors import ConfigError


@pytest.fixture(scope="module")
def network():
    """torch-fidelity's own module."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        found = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty)
    return randomized(found)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_features_are_torch_fidelitys_and_spatial_ones_those_of_the_branch(network, images):
    state = torch.get_rng_state()
    ours = Inception(network.state_dict(), resize="tf1", name="random")
    assert torch.equal(torch.get_rng_state(), state)  # so that a run is the same with and without it
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pooled, logits = network(images)
    hook.remove()
    found = ours.features(images)
    assert pooled.std() > 1e-3  # random, but not constant
    torch.testing.assert_close(found.pooled, pooled)
    torch.testing.assert_close(found.logits, logits)
    assert found.spatial.shape == (2, 2023)
    # location by location, seven channels each: the order in TensorFlow's memory
    torch.testing.assert_close(found.spatial.view(2, 17, 17, 7)[:, 4, 9], seen[0][:, :7, 4, 9])
    assert not ours.train().training
    assert ours.width == 2048


def test_grey_images_are_shown_in_three_channels_and_others_are_refused(network, images):
    ours = Inception(network.state_dict(), resize="half_pixel", name="random")
    grey = images[:1, :1]
    assert torch.equal(ours.features(grey).pooled, ours.features(grey.repeat(1, 3, 1, 1)).pooled)
    with pytest.raises(ValueError, match=r"images must be uint8 \[k, 3 or 1, H, W\], got torch.float32"):
        ours.features(images.float())
    with pytest.raises(ValueError, match="resize must be one of tf1, half_pixel, got 'other'"):
        Inception(network.state_dict(), resize="other", name="random")


def linear_at(position: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values [n] at fractional positions [m], constant beyond the ends."""
    position = position.clamp(0, len(values) - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


@pytest.mark.parametrize("side", [64, 256, 400])
def test_both_resizes_are_their_formulas(side):
    values = torch.rand(side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ramp = values.view(1, 1, 1, -1).expand(1, 1, side, side)
    output = torch.arange(299, dtype=torch.float64)
    corner = linear_at(output * side / 299, values)
    centre = linear_at((output + 0.5) * side / 299 - 0.5, values)
    torch.testing.assert_close(resize_tf1(ramp.float())[0, 0, 5].double(), corner, atol=2e-5, rtol=0)
    torch.testing.assert_close(resize_half_pixel(ramp)[0, 0, 5], centre)
    torch.testing.assert_close(resize_half_pixel(ramp.transpose(2, 3))[0, 0, :, 5], centre)
    assert (corner - centre).abs().max() > 0.05


def test_only_the_published_file_is_inception(network, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(ConfigError, match=r"is not the published file, or damaged: SHA-256 .*Download it again: curl"):
        load_inception(path, resize="tf1")
    monkeypatch.setattr(
        inception_module.hashlib,
        "sha256",
        lambda _: type("", (), {"hexdigest": lambda s: inception_module.FILE_SHA256})(),
    )
    assert load_inception(path, resize="tf1").name == "inception"


def test_a_missing_file_is_told_with_the_command_that_gets_it(tmp_path):
    (tmp_path / "there.pth").touch()
    assert missing_inception(str(tmp_path / "there.pth")) == []
    for path in ("", str(tmp_path / "absent.pth")):
        (missing,) = missing_inception(path)
        assert FILE_URL in missing.command
        assert missing.setting == "eval.inception"
