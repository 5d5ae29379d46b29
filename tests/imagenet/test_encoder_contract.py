"""What every frozen encoder promises, whichever network it holds."""

import pytest
import torch
from small_networks import small_autoencoder, small_convnext, small_resnet

from domains.imagenet.encoders import (
    CombinedFeatures,
    ConvNextFeatures,
    DecodedFeatures,
    MaeFeatures,
    PixelFeatures,
    ResNetFeatures,
)
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.tokenizers import KlTokenizer
from drifting import DriftLoss, FeatureDriftLoss


def mae(**options):
    torch.manual_seed(0)
    config = MaeConfig(channels=3, base_channels=8, blocks=(2, 2), max_groups=2, space_to_depth=4)
    return MaeFeatures(MaskedAutoencoder(config), **options)


def convnext(**options):
    return ConvNextFeatures(small_convnext(), size=64, **options)


def resnet(**options):
    return ResNetFeatures(small_resnet(), size=64, **options)


def decoded(checkpoint=False, dtype=None):
    tokenizer = KlTokenizer(small_autoencoder(), dtype=dtype)
    return DecodedFeatures(tokenizer, convnext(dtype=dtype), chunk=1, checkpoint=checkpoint)


def combined(**options):
    return CombinedFeatures({"": mae(**options), "convnext": convnext(**options)})


SHAPES = {mae: (3, 32, 32), convnext: (3, 48, 48), resnet: (3, 48, 48), decoded: (4, 8, 8), combined: (3, 32, 32)}
every_encoder = pytest.mark.parametrize("build", SHAPES, ids=lambda build: build.__name__)


def samples_for(build, count=2):
    return torch.randn(count, *SHAPES[build], generator=torch.Generator().manual_seed(1)).mul(0.5).requires_grad_()


def gradient(encoder, samples):
    """Of a sum that weighs every vector, at the samples; and the bytes that were kept for it."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = sum(vectors.square().mean() for vectors in encoder(samples).values())
    size = sum(kept.values())
    return torch.autograd.grad(total, samples)[0], size


@every_encoder
def test_one_protocol(build):
    features = build()(samples_for(build, count=3))
    assert {value.dtype for value in features.values()} == {torch.float32}
    assert {(value.ndim, len(value)) for value in features.values()} == {(3, 3)}


@every_encoder
def test_frozen_in_eval_mode_and_transparent(build):
    encoder = build()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert encoder.train() is encoder
    assert not [name for name, module in encoder.named_modules() if module.training]
    samples = samples_for(build)
    sum(value.sum() for value in encoder(samples).values()).backward()
    assert samples.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@every_encoder
def test_a_parent_in_train_mode_does_not_reach_it(build):
    loss = FeatureDriftLoss(build(), DriftLoss()).train()
    assert loss.training
    assert not [name for name, module in loss.encoder.named_modules() if module.training]


@every_encoder
def test_checkpointing_keeps_less_and_changes_no_number(build):
    plain, checkpointed = build(), build(checkpoint=True)
    samples = samples_for(build)
    with torch.no_grad():
        expected, features = plain(samples), checkpointed(samples)
    assert all(torch.equal(features[key], value) for key, value in expected.items())
    (expected_gradient, full), (given, less) = gradient(plain, samples), gradient(checkpointed, samples)
    assert torch.equal(given, expected_gradient)
    assert less < 0.7 * full


@every_encoder
def test_bfloat16_weights_and_float32_statistics(build):
    samples = samples_for(build)
    expected, encoder = build()(samples), build(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    features = encoder(samples)
    assert features.keys() == expected.keys()
    for key, value in features.items():
        assert value.dtype == torch.float32
        if not key.endswith(("norm_x", "global")):
            assert not torch.equal(value, expected[key]), key
        error = (value - expected[key]).norm() / expected[key].norm()
        assert error < 0.1, f"{key}: {error:.3f}"


@every_encoder
def test_float32_features_under_autocast(build):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = build()(samples_for(build).to(torch.bfloat16))
    assert {value.dtype for value in features.values()} == {torch.float32}


@every_encoder
def test_the_drifting_loss_reaches_the_samples(build):
    gen = torch.stack([samples_for(build, 3).detach()]).requires_grad_()
    pos = torch.randn(1, 2, *SHAPES[build], generator=torch.Generator().manual_seed(2))
    FeatureDriftLoss(build(), DriftLoss())(gen, pos).backward()
    assert gen.grad.isfinite().all()
    assert gen.grad.abs().sum() > 0


def test_integer_weights_are_refused():
    with pytest.raises(ValueError, match=r"dtype must be a floating point type, got torch\.int8"):
        convnext(dtype=torch.int8)


def test_combined_keys_are_those_of_the_parts():
    parts = {"": mae(), "convnext": convnext()}
    samples = samples_for(combined)
    features = CombinedFeatures(parts)(samples)
    first, second = parts[""](samples), parts["convnext"](samples)
    assert list(features) == [*first, *(f"convnext_{key}" for key in second)]
    assert all(torch.equal(features[f"convnext_{key}"], value) for key, value in second.items())


def test_combined_refuses_nothing_and_keys_that_occur_twice():
    with pytest.raises(ValueError, match="encoders is empty"):
        CombinedFeatures({})

    class Other(PixelFeatures):
        def forward(self, samples):
            return {"pixels_global": samples.flatten(1).unsqueeze(1)}

    twice = CombinedFeatures({"": Other(), "pixels": PixelFeatures()})
    with pytest.raises(ValueError, match=r"'pixels' returns keys that another one has, too: \['pixels_global'\]"):
        twice(torch.zeros(1, 3, 2, 2))


def test_decoded_features_are_those_of_the_decoded_images():
    tokenizer, encoder = KlTokenizer(small_autoencoder()), convnext()
    latents = samples_for(decoded, 3)
    expected = encoder(tokenizer.decode(latents))
    for chunk in (None, 1, 2, 5):
        features = DecodedFeatures(tokenizer, encoder, chunk=chunk)(latents)
        for key, value in expected.items():
            torch.testing.assert_close(features[key], value, rtol=1e-4, atol=1e-4, msg=f"{key}, chunk {chunk}")
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        DecodedFeatures(tokenizer, encoder, chunk=0)
