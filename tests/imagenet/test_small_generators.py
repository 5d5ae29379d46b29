"""The generators that a CPU trains: what both promise, and what the convolutions alone do."""

import pytest
import torch

from domains.imagenet.conv_generator import ConvConfig, ConvGenerator
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.sampling import generate
from drifting import DriftLoss

KINDS = ["mlp", "conv", "conv after a perceptron"]


def built(kind: str, **settings):
    torch.manual_seed(0)
    if kind == "mlp":
        return MlpGenerator(MlpConfig(hidden=32, depth=1, **settings))
    return ConvGenerator(ConvConfig(size=8, widths=[16, 8], hidden=0 if kind == "conv" else 24, **settings))


@pytest.fixture(params=KINDS)
def generator(request):
    return built(request.param)


def opened(generator):
    """The same with a modulation that no longer starts at zero."""
    if isinstance(generator, ConvGenerator):
        for name, parameter in generator.named_parameters():
            if ".film." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return generator


def test_samples_stay_in_range_and_every_pixel_gets_a_gradient(generator):
    noise = 5 * torch.randn(40, 1, 8, 8)
    samples = generator(noise, torch.arange(40) % 10, torch.ones(40))
    assert samples.abs().max() <= 1
    DriftLoss()(samples.view(2, 20, 64), torch.rand(2, 7, 64)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


@pytest.mark.parametrize("changed", ["labels", "alpha", "noise"])
def test_every_input_changes_the_sample(generator, changed):
    inputs = {
        "noise": torch.randn(1, 1, 8, 8),
        "labels": torch.tensor([3]),
        "alpha": torch.ones(1),
    }
    before = generator(*inputs.values())
    inputs[changed] = inputs[changed] + 1
    assert not torch.allclose(generator(*inputs.values()), before, atol=1e-4)


def test_generate_depends_on_the_seed_and_not_on_the_batch(generator):
    labels = torch.arange(10).repeat(3)
    whole = generate(generator, labels, 1.5, seed=1)
    torch.testing.assert_close(generate(generator, labels, 1.5, seed=1, batch=7), whole, atol=1e-6, rtol=0)
    assert not torch.equal(generate(generator, labels, 1.5, seed=2), whole)


def test_refusals(generator):
    good = torch.zeros(2, 1, 8, 8), torch.tensor([0, 9]), torch.ones(2)
    generator(*good)
    with pytest.raises(ValueError, match=r"noise must be \[2, 1, 8, 8\].* got \(2, 1, 8, 9\)"):
        generator(torch.zeros(2, 1, 8, 9), *good[1:])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got values in \[0, 10\]"):
        generator(good[0], torch.tensor([0, 10]), good[2])
    with pytest.raises(ValueError, match="alpha must be finite and >= 1"):
        generator(good[0], good[1], torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_chosen_values_of_the_noise_count(kind):
    generator = built(kind, noise_values=5)
    noise, other, same = torch.randn(3, 1, 8, 8)
    same.view(-1)[:5] = noise.view(-1)[:5]
    condition = torch.tensor([3]), torch.ones(1)
    torch.testing.assert_close(generator(same[None], *condition), generator(noise[None], *condition), rtol=0, atol=0)
    assert not torch.allclose(generator(other[None], *condition), generator(noise[None], *condition), atol=1e-4)


@pytest.mark.parametrize("config", [MlpConfig, ConvConfig])
def test_shapes_that_cannot_be_built_are_refused(config):
    with pytest.raises(ValueError, match=r"generator\.(mlp|conv)\.output_range must be \[low, high\]"):
        config(output_range=(1.0, -1.0))
    for values in (0, 28 * 28 + 1):
        expected = rf"generator\.(mlp|conv)\.noise_values must be in \[1, .* = 784\], or null for all, got {values}"
        with pytest.raises(ValueError, match=expected):
            config(size=28, noise_values=values)
    with pytest.raises(ValueError, match=r"generator\.(mlp|conv)\.channels must be at least 1, got 0"):
        config(channels=0)


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"generator\.conv\.size must be a multiple of 8, .* got 28"):
        ConvConfig(size=28, patch=2, widths=[32, 16, 8])
    with pytest.raises(ValueError, match=r"generator\.conv\.widths must be one or more multiples of 8, got \[12\]"):
        ConvConfig(widths=[12])
    with pytest.raises(ValueError, match=r"generator\.conv\.widths must be one or more"):
        ConvConfig(widths=[])
    with pytest.raises(ValueError, match=r"generator\.conv\.hidden must be at least 1, or 0 for a linear map, got -1"):
        ConvConfig(hidden=-1)


def test_the_last_convolutions_see_their_neighbourhood_alone():
    """Two 3 x 3 convolutions on the finest grid and the head reach three places of it, of two pixels each."""
    torch.manual_seed(0)
    generator = opened(ConvGenerator(ConvConfig(size=32, widths=[8])))
    generator.blocks[0].norm1.norm = generator.blocks[0].norm2.norm = generator.norm.norm = torch.nn.Identity()
    grids = torch.zeros(2, 8, 16, 16)
    grids[1, :, 8, 8] = 1
    generator.enter = Fixed(grids.flatten(1))
    generator.cfg.output_range = None
    one, other = generator(torch.zeros(2, 1, 32, 32), torch.tensor([3, 3]), torch.ones(2))
    rows, columns = ((one - other).abs() > 1e-5)[0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 23, 10, 23)


class Fixed(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value
