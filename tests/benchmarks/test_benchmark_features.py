"""The parts that benchmarks.features times are one training step, and its three losses are one loss."""

import torch

from benchmarks.feature_losses import LOSSES, FeatureBatch, Sizes
from benchmarks.features import build, training_step
from domains.imagenet.generator import GeneratorConfig
from domains.imagenet.mae import MaeConfig

SIZES = Sizes(B=2, G=3, P=2, N=2)
WIDTHS = {"map": (4, 5), "other map": (4, 5), "mean": (1, 8)}  # F, D


def features(count: int) -> dict[str, torch.Tensor]:
    return {key: torch.randn(SIZES.B * count, *width, requires_grad=True) for key, width in WIDTHS.items()}


def test_losses_have_the_same_gradient():
    torch.manual_seed(0)
    batch = FeatureBatch(SIZES, features(SIZES.G), features(SIZES.P), features(SIZES.N))
    expected = LOSSES["transcription per key"](batch)
    for loss in LOSSES.values():
        for gradient, other in zip(loss(batch), expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_a_step_reaches_the_generator_through_every_feature():
    torch.manual_seed(0)
    shape = GeneratorConfig(channels=1, size=8, hidden=16, depth=1, heads=2, num_classes=2, context_tokens=0)
    generator, encoder = build(shape, MaeConfig(channels=1, base_channels=4, blocks=(1, 2)))
    reached = []
    generator.final.linear.weight.register_hook(lambda gradient: reached.append(gradient.abs().max().item()))
    seconds, batch = training_step(generator, encoder, SIZES, torch.randn(SIZES.B * (SIZES.P + SIZES.N), 1, 8, 8))
    assert reached[0] > 0
    assert list(batch.gen) == list(batch.pos) == list(batch.neg)
    assert [len(block["global"]) for block in (batch.gen, batch.pos, batch.neg)] == [6, 4, 4]
    assert len(seconds) == 6
    assert min(seconds.values()) > 0
