"""The crops, on pictures whose pixels say where they came from."""

import numpy as np
import pytest
import torch
from PIL import Image

from domains.imagenet.data.crops import RATIO, SCALE, _random_box, centre_crop, random_crop


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column and green the row, from 0 to 250."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([250 * x / (width - 1), 250 * y / (height - 1), np.zeros_like(x)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def chequers(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(("width", "height"), [(400, 100), (100, 400), (130, 90), (64, 64), (30, 45)])
def test_the_centre_crop_is_square_central_and_keeps_the_aspect(width, height):
    size = 64
    crop = centre_crop(ramp(width, height), size).float()
    assert crop.shape == (3, size, size)
    short = min(width, height)
    for channel, side in ((crop[0].mean(0), width), (crop[1].mean(1), height)):
        middle = (channel[31] + channel[32]) / 2
        assert abs(float(middle) - 125) < 2.5  # the picture's middle is the crop's
        span = float(channel[48] - channel[16])  # half of the crop's side
        assert abs(span - 250 * (short / 2) / (side - 1)) < 4


def test_a_crop_of_the_picture_own_size_changes_no_pixel():
    image = ramp(70, 64)
    expected = torch.from_numpy(np.asarray(image)[:, 3:67].copy()).permute(2, 0, 1)
    assert torch.equal(centre_crop(image, 64), expected)


def test_an_odd_remainder_is_cut_off_on_the_right_and_below():
    image = ramp(69, 64)
    expected = torch.from_numpy(np.asarray(image)[:, 2:66].copy()).permute(2, 0, 1)
    assert torch.equal(centre_crop(image, 64), expected)


def test_large_pictures_are_halved_by_a_box_filter_first():
    # Pairs of pixels average out exactly; a bicubic filter alone leaves ringing at the borders.
    crop = centre_crop(chequers(256, 256), 64)
    assert ((crop == 127) | (crop == 128)).all()


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("side", "resample"), [(128, Image.Resampling.BOX), (127, Image.Resampling.BICUBIC), (40, Image.Resampling.BICUBIC)]
)
def test_the_box_filter_halves_from_twice_the_size_on(side, resample):
    expected = np.asarray(noise(side).resize((64, 64), resample))
    assert torch.equal(centre_crop(noise(side), 64), torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_random_crop_shows_the_part_that_was_drawn():
    image, size = ramp(200, 120), 48
    for seed in range(20):
        top, left, height, width = _random_box(200, 120, torch.Generator().manual_seed(seed))
        crop = random_crop(image, size, torch.Generator().manual_seed(seed)).float()
        assert abs(float(crop[0].mean()) - 250 * (left + (width - 1) / 2) / 199) < 2
        assert abs(float(crop[1].mean()) - 250 * (top + (height - 1) / 2) / 119) < 2


def test_random_boxes_lie_inside_and_cover_scale_and_ratio():
    generator = torch.Generator().manual_seed(0)
    boxes = [_random_box(300, 300, generator) for _ in range(4000)]
    share = torch.tensor([h * w / 300**2 for _, _, h, w in boxes])
    ratio = torch.tensor([w / h for _, _, h, w in boxes]).log()
    assert all(top >= 0 and left >= 0 and top + h <= 300 and left + w <= 300 for top, left, h, w in boxes)
    assert SCALE[0] - 0.01 < share.min() < 0.22
    assert 0.95 < share.max() <= SCALE[1]
    # Small parts of any ratio fit: there the draw is uniform in share and log ratio.
    assert abs(float(ratio[share < 0.5].mean())) < 0.02
    assert abs(float(ratio[share < 0.5].std()) - np.log(RATIO[1] / RATIO[0]) / 12**0.5) < 0.01
    small = share[share < 0.6]
    assert abs(float((small < 0.4).float().mean()) - 0.5) < 0.03
    left = torch.tensor([left / (300 - w) for _, left, _, w in boxes if w < 290])
    assert abs(float(left.mean()) - 0.5) < 0.02


def test_a_picture_too_narrow_for_any_crop_gives_its_middle():
    top, left, height, width = _random_box(1000, 10, torch.Generator().manual_seed(0))
    assert (top, left, height, width) == (0, (1000 - 13) // 2, 10, 13)


def test_the_generator_alone_decides():
    image = ramp(90, 70)
    draws = [random_crop(image, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
