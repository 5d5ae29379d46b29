import pytest
import torch

from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.sampling import generate
from drifting import DriftLoss


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return MlpGenerator(MlpConfig(hidden=32, depth=1))


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
    with pytest.raises(ValueError, match=r"generator.mlp.output_range must be \[low, high\]"):
        MlpConfig(output_range=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"generator\.mlp\.hidden must be at least 1, got 0"):
        MlpConfig(hidden=0)
