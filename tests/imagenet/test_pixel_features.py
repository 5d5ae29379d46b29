"""Pixels as features: the image, and its patches as problems of their own."""

import pytest
import torch

from domains.imagenet.encoders import PixelFeatures
from drifting import DriftLoss, FeatureDriftLoss, MeanShift


def test_patches_hold_the_pixels_of_their_place():
    samples = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    features = PixelFeatures([2])(samples)
    assert {key: tuple(value.shape) for key, value in features.items()} == {"global": (2, 1, 72), "patch_2": (2, 6, 12)}
    second_row_second_column = samples[1, :, 2:4, 2:4].flatten()
    torch.testing.assert_close(features["patch_2"][1, 4], second_row_second_column)
    assert PixelFeatures()(samples).keys() == {"global"}


def test_what_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match=r"patches of 4 x 4 do not fill samples of shape \(1, 4, 6\)"):
        PixelFeatures([4])(torch.zeros(2, 1, 4, 6))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        PixelFeatures([0])


def test_patches_pull_each_place_towards_what_stands_there():
    """Left halves of the data are all 1, right halves all 0: patches drift there, each to its own."""
    pos = torch.zeros(1, 16, 1, 2, 4)
    pos[..., :2] = 1.0
    gen = torch.full((1, 8, 1, 2, 4), 0.5).add_(
        torch.randn(1, 8, 1, 2, 4, generator=torch.Generator().manual_seed(0)) / 9
    )
    gen.requires_grad_()
    loss = FeatureDriftLoss(PixelFeatures([2]), DriftLoss((0.5,), MeanShift(floor=0)))
    loss(gen, pos).backward()
    towards = -gen.grad.mean(dim=(0, 1, 2, 3))
    assert (towards[:2] > 0).all()
    assert (towards[2:] < 0).all()
