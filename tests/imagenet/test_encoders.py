"""The frozen encoder and its keys."""

import pytest
import torch

from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder


def small_mae(**changes) -> MaskedAutoencoder:
    return MaskedAutoencoder(MaeConfig(**({"base_channels": 4, "max_groups": 2} | changes)))


def test_released_recipe_has_86_keys_and_6734_vectors():
    features = MaeFeatures(small_mae())(torch.randn(2, 4, 32, 32))
    assert len({key.split("_mean")[0].split("_std")[0] for key in features} - {"norm_x", "global"}) == 12
    assert len(features) == 86
    assert sum(value.shape[1] for value in features.values()) == 6734
    assert features["global"].shape == (2, 1, 4096)
    assert features["norm_x"].shape == (2, 1, 4)


def test_the_paper_read_literally_has_9_maps_and_4544_vectors():
    """Every second block and the last one of each stage; no stem."""
    maps = [f"layer{s}_blk{b}" for s, blocks in enumerate([(2, 3), (2, 4), (2, 4, 6), (2, 3)], start=1) for b in blocks]
    features = MaeFeatures(small_mae(), maps=maps)(torch.randn(1, 4, 32, 32))
    assert len(maps) == 9
    assert sum(value.shape[1] for value in features.values()) == 4544


def test_pixels_see_the_grid():
    features = MaeFeatures(small_mae(channels=3, space_to_depth=8, blocks=(1, 1)))(torch.randn(1, 3, 64, 64))
    assert features["norm_x"].shape == (1, 1, 192)
    assert features["conv1"].shape == (1, 64, 4)
    assert features["global"].shape == (1, 1, 3 * 64 * 64)


def test_digits_leave_out_patches_larger_than_the_map():
    features = MaeFeatures(small_mae(channels=1, blocks=(1, 1, 1)))(torch.randn(2, 1, 8, 8))
    assert {key for key in features if key.startswith("layer3")} == {
        "layer3", "layer3_mean", "layer3_std", "layer3_mean_2", "layer3_std_2",
    }  # fmt: skip


def test_norm_x_is_the_root_mean_square():
    x = torch.randn(2, 4, 32, 32)
    torch.testing.assert_close(MaeFeatures(small_mae(), maps=())(x)["norm_x"][:, 0], (x**2).mean((2, 3)).sqrt())


def test_choices():
    mae = small_mae()
    x = torch.randn(1, 4, 32, 32)
    chosen = MaeFeatures(mae, maps=("layer4", "layer1_blk3"), patch_sizes=(), input_norm=False, sample_itself=False)
    assert set(chosen(x)) == {f"{m}{s}" for m in ("layer4", "layer1_blk3") for s in ("", "_mean", "_std")}
    assert set(MaeFeatures(mae, maps=())(x)) == {"norm_x", "global"}


def test_frozen_but_transparent():
    features = MaeFeatures(small_mae()).train()
    assert not features.training
    assert not features.encoder.training
    assert all(not p.requires_grad for p in features.parameters())
    x = torch.randn(1, 4, 32, 32, requires_grad=True)
    features(x)["layer4"].square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_decoder_is_not_kept():
    assert not [name for name, _ in MaeFeatures(small_mae()).named_parameters() if "decoder" in name]


def test_float32_under_autocast_and_for_bf16_samples():
    features = MaeFeatures(small_mae())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = features(torch.randn(1, 4, 32, 32, dtype=torch.bfloat16))
    assert {value.dtype for value in outputs.values()} == {torch.float32}


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="layer5"):
        MaeFeatures(small_mae(), maps=("layer5",))
    with pytest.raises(ValueError, match="at least one"):
        MaeFeatures(small_mae(), maps=(), input_norm=False, sample_itself=False)
    with pytest.raises(ValueError, match=r"\[K, 4, H, W\]"):
        MaeFeatures(small_mae())(torch.zeros(1, 3, 32, 32))
