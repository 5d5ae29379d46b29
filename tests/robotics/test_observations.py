import pytest
import torch
from small_policies import observation, small_config, small_task

from domains.robotics.cameras import crop
from domains.robotics.observations import ObservationEncoder
from drifting.training.errors import ConfigError


def encoder(config=None, **facts):
    torch.manual_seed(0)
    return ObservationEncoder(small_task(**facts), config or small_config())


def test_steps_and_keys_lie_side_by_side():
    seen = observation()
    expected = torch.cat([torch.cat([seen["object"][:, t], seen["hand"][:, t]], dim=-1) for t in range(2)], dim=-1)
    torch.testing.assert_close(encoder()(seen), expected)


def test_bounds_are_those_of_each_number():
    seen, made = observation(50), encoder()
    made.fit(seen)
    condition = made(seen).unflatten(1, (2, 5))
    torch.testing.assert_close(condition.amax((0, 1)), torch.ones(5))
    torch.testing.assert_close(condition.amin((0, 1)), -torch.ones(5))


def test_octaves_follow_the_numbers_and_the_distance_of_observations_does_not_see_them():
    seen, plain, made = observation(50), encoder(), encoder(small_config(octaves=3))
    plain.fit(seen)
    made.fit(seen)
    x = plain(seen)
    assert made.dim == 4 * plain.dim
    expected = torch.cat([x, *(torch.sin(factor * torch.pi * x) for factor in (2, 4, 8))], dim=-1)
    torch.testing.assert_close(made(seen), expected)
    assert torch.equal(made.low_dimensional(seen), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda seen: seen.pop("hand"), "must have 'hand', got"),
        (lambda seen: seen.update(hand=torch.zeros(3, 2, 4)), r"'hand' must be \[\.\.\., 2\]"),
        (lambda seen: seen.update(hand=torch.zeros(3, 3, 2)), r"'hand' must be \[B, 2, \.\.\.\]"),
        (lambda seen: seen.update(hand=torch.zeros(3, 2)), r"'hand' must be \[B, 2, \.\.\.\]"),
    ],
)
def test_wrong_observations_are_named(change, message):
    seen = observation()
    change(seen)
    with pytest.raises(ValueError, match=message):
        encoder()(seen)


def pictures():
    return torch.arange(2 * 5 * 5 * 3).view(2, 5, 5, 3)


def test_a_crop_is_cut_where_it_is_told_to():
    images = pictures()
    where = torch.tensor([[0.0, 0.999], [0.5, 0.0]])
    cut = crop(images, 3, where)
    assert torch.equal(cut[0], images[0, 0:3, 2:5])
    assert torch.equal(cut[1], images[1, 1:4, 0:3])


def test_the_crop_of_a_policy_in_use_is_central():
    assert torch.equal(crop(pictures(), 3), pictures()[:, 1:4, 1:4])
    assert torch.equal(crop(pictures(), 5), pictures())


def test_every_place_of_a_crop_is_drawn_as_often():
    where = torch.rand(9000, 2, generator=torch.Generator().manual_seed(0))
    corners = crop(torch.arange(25).view(1, 5, 5, 1).expand(9000, 5, 5, 1), 3, where)[:, 0, 0, 0]
    counts = torch.bincount(corners, minlength=25).view(5, 5)
    assert counts[3:].sum() == 0 and counts[:, 3:].sum() == 0
    assert (counts[:3, :3] / 1000 - 1).abs().max() < 0.12


def test_images_need_robomimic_and_say_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "robomimic.models.obs_core", None)
    with pytest.raises(ConfigError, match="pip install robomimic"):
        encoder(images={"camera": 84})


@pytest.fixture(scope="module")
def made():
    pytest.importorskip("robomimic")
    return encoder(images={"front": 84, "wrist": 84})


class TestImages:
    def test_gradients_reach_the_first_convolution_of_every_camera(self, made):
        made.zero_grad()
        condition = made(observation(2, front=84, wrist=84))
        assert condition.shape == (2, 2 * (5 + 2 * 64))
        condition.square().sum().backward()
        for camera in made.cameras.values():
            first = next(layer for layer in camera.modules() if isinstance(layer, torch.nn.Conv2d))
            assert first.weight.grad.abs().sum() > 0

    def test_no_batch_statistics(self, made):
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in made.modules())
        seen = observation(2, front=84, wrist=84)
        alone = {key: value[:1] for key, value in seen.items()}
        torch.testing.assert_close(made(seen)[:1], made(alone), rtol=1e-4, atol=1e-5)

    def test_each_step_and_camera_has_its_own_crop(self, made):
        seen = observation(2, front=84, wrist=84)
        crops = made.draw_crops(2, torch.Generator().manual_seed(0), torch.device("cpu"))
        assert crops.shape == (2, 2, 2, 2)
        before = made(seen, crops)
        crops[1, 0, 1] = 0.99 - crops[1, 0, 1]  # second observation, first step, second camera
        moved = (made(seen, crops) - before).abs() > 1e-6
        wrist = slice(10 + 2 * 64, 10 + 3 * 64)  # after low-dimensional numbers and both steps of the first camera
        assert moved[1, wrist].any() and moved.sum() == moved[1, wrist].sum()

    def test_crops_are_drawn_where_the_generator_is(self, made, monkeypatch):
        """torch refuses a generator of the CPU for numbers on a GPU."""
        rand, asked = torch.rand, []
        monkeypatch.setattr(torch, "rand", lambda *shape, **given: asked.append(given) or rand(*shape, **given))
        generator = torch.Generator().manual_seed(0)
        assert made.draw_crops(2, generator, torch.device("meta")).device.type == "meta"
        assert asked == [{"generator": generator, "device": torch.device("cpu")}]

    def test_wrong_images_are_refused(self, made):
        with pytest.raises(ValueError, match="uint8"):
            made(observation(2, front=84, wrist=64))
        with pytest.raises(ConfigError, match="crop must be at most 64"):
            encoder(images={"front": 64})
