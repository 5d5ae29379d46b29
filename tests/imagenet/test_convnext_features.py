"""Every key of the ConvNeXt-V2 features against numpy, on the maps that hooks see in the library's own forward pass."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import small_convnext

from domains.imagenet.encoders import ConvNextFeatures
from domains.imagenet.encoders.convnext_features import normalized_over_channels
from domains.imagenet.hub import WeightsError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def triangle_filter(size, result):
    """Antialiased bilinear resize of one side as a matrix [result, size]."""
    ratio = size / result
    centres = (np.arange(result) + 0.5) * ratio
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(ratio, 1))
    return weights / weights.sum(1, keepdims=True)


def network_input(samples, size):
    x = ((samples.numpy().astype(np.float64) + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]
    matrix = triangle_filter(samples.shape[2], size)
    return np.einsum("ih,kchw,jw->kcij", matrix, x, matrix)


@pytest.mark.parametrize("side", [40, 24, 32], ids=["smaller", "larger", "same"])
def test_every_key(side):
    network = small_convnext()
    samples = 2 * torch.randn(2, 3, side, side)  # beyond [-1, 1]: nothing is clipped
    maps = []
    hooks = [
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output.double().numpy()))
        for stage in network.convnextv2.encoder.stages
    ]
    with torch.no_grad():
        last = network.convnextv2(torch.from_numpy(network_input(samples, 32)).float()).pooler_output
    for hook in hooks:
        hook.remove()

    expected = {}
    for i, x in enumerate(maps):
        y = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-3)
        locations = y.reshape(*y.shape[:2], -1).transpose(0, 2, 1)
        if i > 0:
            expected[f"stage{i}"] = locations
        expected[f"stage{i}_mean"] = locations.mean(1, keepdims=True)
        expected[f"stage{i}_std"] = np.sqrt(locations.var(1, keepdims=True) + 1e-6)
    expected["global_mean"] = last.numpy()[:, None]
    expected["global_std"] = expected["stage3_std"]

    features = ConvNextFeatures(network, size=32)(samples)
    assert list(features) == list(expected)
    for key, value in features.items():
        np.testing.assert_allclose(value.numpy(), expected[key], rtol=1e-4, atol=2e-5, err_msg=key)


def test_thirteen_keys_and_1039_vectors():
    features = ConvNextFeatures(small_convnext())(torch.randn(1, 3, 256, 256))
    assert len(features) == 13
    assert sum(value.shape[1] for value in features.values()) == 1039
    assert [features[f"stage{i}"].shape[1] for i in (1, 2, 3)] == [28**2, 14**2, 7**2]


def test_a_location_of_equal_channels_has_a_finite_gradient():
    x = torch.ones(1, 4, 2, 2, requires_grad=True)
    y = normalized_over_channels(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert x.grad.isfinite().all()


@pytest.fixture
def folder(tmp_path):
    small_convnext().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stored", ["classifier", "body", "pickle"])
def test_from_pretrained_reads_a_folder(folder, stored):
    if stored == "body":
        small_convnext().convnextv2.save_pretrained(folder)
    elif stored == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    given, expected = (
        ConvNextFeatures.from_pretrained(folder).state_dict(),
        ConvNextFeatures(small_convnext()).state_dict(),
    )
    assert given.keys() == expected.keys()
    assert not [name for name in given if "classifier" in name]
    assert all(torch.equal(given[name], value) for name, value in expected.items())


def test_options_reach_the_constructor(folder):
    encoder = ConvNextFeatures.from_pretrained(folder, size=64, dtype=torch.bfloat16, checkpoint=True)
    assert encoder.checkpoint
    assert encoder.input.size == 64
    assert next(encoder.parameters()).dtype == torch.bfloat16


def test_another_network_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "convnext"}))
    with pytest.raises(WeightsError, match="must hold a network of model_type convnextv2, got convnext"):
        ConvNextFeatures.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "shape", "torn"])
def test_weights_that_do_not_fit_are_refused(folder, damage):
    """The library itself only warns of missing weights, and leaves them random."""
    path, name = folder / "model.safetensors", "convnextv2.encoder.stages.0.layers.0.dwconv.weight"
    weights = load_file(path)
    if damage == "missing":
        weights["renamed"] = weights.pop(name)
    elif damage == "shape":
        weights[name] = weights[name][:, :, :3, :3].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"does not hold the network that its config\.json describes") as caught:
        ConvNextFeatures.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    if damage == "missing":
        assert "lacks convnextv2.encoder.stages.0.layers.0.dwconv.weight and has unknown renamed" in str(caught.value)


def test_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"RGB images \[K, 3, H, W\] in \[-1, 1\], got shape \(2, 4, 32, 32\)"):
        ConvNextFeatures(small_convnext())(torch.zeros(2, 4, 32, 32))
    with pytest.raises(ValueError, match="size must be >= 1"):
        ConvNextFeatures(small_convnext(), size=0)
