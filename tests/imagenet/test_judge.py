import pytest
import torch

from domains.imagenet import judge as judge_module
from domains.imagenet.data.digits import digits_splits
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.judge import judge_file, load_judge, train_judge
from domains.imagenet.judge_networks import Augmentation, augmented, judge_recipe
from drifting.training.errors import ConfigError

STILL = Augmentation(degrees=0, shift_pixels=0, scale=0, noise=0)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(judge_module, "STEPS", 3)


@pytest.fixture(scope="module")
def digits():
    return digits_splits().train


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coloured(count: int = 60, side: int = 20) -> LabelledImages:
    """Two classes, red and blue on noise, uint8."""
    images = torch.randint(0, 100, (count, 3, side, side), generator=seeded(), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 0, 0] += 150
    images[labels == 1, 2] += 150
    return LabelledImages(images, labels)


def test_judges_depend_on_data_and_seed_alone(digits, quick):
    torch.manual_seed(0)
    one = train_judge(digits, 5)
    torch.manual_seed(1)
    other = train_judge(digits, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    third = train_judge(digits, 6)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_a_judge_is_trained_once_and_read_again(digits, quick, tmp_path, monkeypatch):
    one = load_judge(digits, 5, tmp_path)
    monkeypatch.setattr(judge_module, "train_judge", lambda *_: pytest.fail("it was in the cache"))
    other = load_judge(digits, 5, tmp_path)
    features = other.features(digits.images[:7])
    assert torch.equal(one.features(digits.images[:7]).pooled, features.pooled)
    assert features.pooled.shape == (7, other.width)
    assert features.logits.shape == (7, 10)


def test_the_cache_tells_judges_of_other_data_seeds_and_recipes_apart(digits, tmp_path, monkeypatch):
    half = digits.subset(torch.arange(500))
    files = {judge_file(digits, 5, tmp_path), judge_file(digits, 6, tmp_path), judge_file(half, 5, tmp_path)}
    monkeypatch.setattr(judge_module, "STEPS", 3)
    assert len(files | {judge_file(digits, 5, tmp_path)}) == 4


def test_a_damaged_judge_is_named(digits, quick, tmp_path):
    load_judge(digits, 5, tmp_path)
    file = judge_file(digits, 5, tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=rf"{file.name} is damaged: .*Delete it"):
        load_judge(digits, 5, tmp_path)


@pytest.mark.parametrize("side", [20, 66])
def test_larger_images_have_a_residual_judge_that_learns(side, monkeypatch):
    monkeypatch.setattr(judge_module, "STEPS", 6)
    data = coloured(side=side)
    judge = train_judge(data, 0)
    features = judge.features(data.images)
    assert features.pooled.shape == (60, judge.width)
    assert (features.logits.argmax(1) == data.labels).float().mean() > 0.9


def test_a_judge_sees_8_bit_images_as_their_floats(monkeypatch):
    monkeypatch.setattr(judge_module, "STEPS", 1)
    data = coloured()
    judge = train_judge(data, 0)
    floats = data.images.float() / 127.5 - 1
    torch.testing.assert_close(judge.features(data.images).pooled, judge.features(floats).pooled)


@pytest.mark.parametrize("photographs", [False, True])
def test_augmentation_moves_images_by_what_it_says(digits, photographs):
    images = digits.images[:50]
    still = augmented(images, seeded(), STILL)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    noisy = augmented(images, seeded(), Augmentation(0, 0, 0, noise=0.3, photographs=photographs))
    assert (noisy - images).std() == pytest.approx(0.3, rel=0.05)


def test_half_of_the_images_are_flipped(digits):
    images = digits.images[:200]
    flipped = augmented(images, seeded(), Augmentation(0, 0, 0, 0, flip=True))
    same = (flipped - images).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (flipped - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert (same | mirrored).all()
    assert 70 < same.sum() < 130


def test_background_moves_in_from_outside_unless_it_is_a_photograph():
    images = torch.ones(40, 1, 16, 16)
    moved = Augmentation(degrees=0, shift_pixels=8, scale=0, noise=0)
    assert augmented(images, seeded(), moved).min() == -1
    mirrored = Augmentation(degrees=0, shift_pixels=8, scale=0, noise=0, photographs=True)
    torch.testing.assert_close(augmented(images, seeded(), mirrored), images)


def test_recipes_fit_the_size_of_the_images():
    assert judge_recipe((1, 8, 8)).widths == ()
    assert judge_recipe((1, 28, 28)).stride == 2
    assert judge_recipe((3, 256, 256)) == judge_recipe((3, 64, 64))
    assert judge_recipe((3, 64, 64)).augmentation.flip
    assert not judge_recipe((1, 28, 28)).augmentation.flip
    assert judge_recipe((3, 64, 64), steps=7).steps == 7
