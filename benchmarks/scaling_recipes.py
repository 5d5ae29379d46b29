"""The five released recipes (paper Table 8, sizes of the released configurations), and what a step of each is made of.

Networks are built on the meta device: parameters are counted and products too, nothing is computed.
Shapes: labels, G generated, P positives, N unconditional samples per label; values: numbers in a sample's features.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from domains.imagenet.encoders import CombinedFeatures, ConvNextFeatures, MaeFeatures
from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from drifting import DriftLoss, FeatureDriftLoss
from drifting.arguments import DriftInputs
from drifting.training.flops import FlopCount

CONVNEXT_BASE = {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}
TEMPERATURES = (0.02, 0.05, 0.2)
META = torch.device("meta")


@dataclass(frozen=True)
class Recipe:
    name: str
    generator: str  # preset
    mae_width: int
    labels: int
    G: int
    P: int
    N: int
    steps: int
    averages: int  # of the weights: four decays in Table 8, one in the ablation
    convnext: bool = False

    @property
    def pixels(self) -> bool:
        return self.generator.endswith("/16")

    @property
    def per_label(self) -> tuple[int, int, int]:
        """Generated, positive and unconditional samples."""
        return self.G, self.P, self.N

    @property
    def images(self) -> int:
        """Generated per step."""
        return self.labels * self.G


RECIPES = (
    Recipe("latent ablation", "B/2", 256, labels=64, G=64, P=64, N=16, steps=30_000, averages=1),
    Recipe("latent B/2", "B/2", 640, labels=128, G=64, P=64, N=32, steps=200_000, averages=4),
    Recipe("latent L/2", "L/2", 640, labels=128, G=64, P=64, N=32, steps=200_000, averages=4),
    Recipe("pixel B/16", "B/16", 640, labels=128, G=64, P=128, N=32, steps=100_000, averages=4, convnext=True),
    Recipe("pixel L/16", "L/16", 640, labels=128, G=64, P=128, N=32, steps=100_000, averages=4, convnext=True),
)
QUICK = (Recipe("quick", "quick", 16, labels=8, G=8, P=8, N=4, steps=100, averages=1),)
QUICK_GENERATOR = GeneratorConfig(size=8, hidden=32, depth=2, heads=2, num_classes=10, context_tokens=2, style_tokens=2)
QUICK_BLOCKS = (1, 1)


def generator_config(recipe: Recipe, *, checkpoint: bool) -> GeneratorConfig:
    preset = QUICK_GENERATOR if recipe.generator == "quick" else generator_preset(recipe.generator)
    return replace(preset, checkpoint_blocks=checkpoint)


def build_generator(recipe: Recipe, *, checkpoint: bool = False) -> DiTGenerator:
    return DiTGenerator.skeleton(generator_config(recipe, checkpoint=checkpoint), "generator")


def build_encoder(
    recipe: Recipe, *, dtype: torch.dtype | None = None, checkpoint: bool = False, device: torch.device = META
) -> nn.Module:
    """The frozen encoder; on the meta device without values, on another with random weights."""
    blocks = QUICK_BLOCKS if recipe.generator == "quick" else (3, 4, 6, 3)
    shape = {"channels": 3, "space_to_depth": 8} if recipe.pixels else {}
    config = MaeConfig(base_channels=recipe.mae_width, blocks=blocks, **shape)
    if device == META:
        mae = MaskedAutoencoder.skeleton(config, "mae_encoder")
    else:
        with device:
            mae = MaskedAutoencoder(config, encoder_only=True)
    features = MaeFeatures(mae, dtype=dtype, checkpoint=checkpoint)
    if not recipe.convnext:
        return features
    from transformers import ConvNextV2Config, ConvNextV2Model

    with device:
        network = ConvNextV2Model(ConvNextV2Config(**CONVNEXT_BASE))
        convnext = ConvNextFeatures(network, dtype=dtype, checkpoint=checkpoint)
    return CombinedFeatures({"": features, "convnext": convnext})


def inputs(config: GeneratorConfig, count: int) -> tuple[torch.Tensor, ...]:
    """Noise, labels, guidance scales and styles of `count` samples, without values."""
    with torch.device("meta"):
        noise = torch.empty(count, config.channels, config.size, config.size)
        style = torch.empty(count, config.style_tokens, dtype=torch.int64)
        return noise, torch.empty(count, dtype=torch.int64), torch.empty(count), style


@dataclass(frozen=True)
class Work:
    """Counted on the meta device; FLOPs are of one sample, `loss` of one label."""

    generator_parameters: int
    encoder_parameters: int
    keys: int  # features
    values: int  # numbers in all features of a sample
    generate: int
    generate_both_ways: int
    encode: int
    encode_both_ways: int
    loss: int
    lots: int  # groups of features that the loss processes one after the other

    def step(self, recipe: Recipe) -> int:
        """FLOPs of a step that does nothing twice."""
        generated = self.generate_both_ways + self.encode_both_ways
        return recipe.labels * (recipe.G * generated + (recipe.P + recipe.N) * self.encode + self.loss)


@cache
def skeleton(recipe: Recipe) -> DiTGenerator:
    """The generator, to read shapes from."""
    return build_generator(recipe)


@cache
def work(recipe: Recipe) -> Work:
    """Counted with one sample; the loss with one label, whose features are given."""
    generator, encoder = build_generator(recipe), build_encoder(recipe)
    with FlopCount() as generate_both_ways:
        samples = generator(*inputs(generator.cfg, 1))
        samples.sum().backward()
    with torch.no_grad(), FlopCount() as generate:
        generator(*inputs(generator.cfg, 1))
    leaf = samples.detach().requires_grad_()
    with FlopCount() as encode_both_ways:
        features = encoder(leaf)
        torch.stack([feature.sum() for feature in features.values()]).sum().backward()
    with torch.no_grad(), FlopCount() as encode:
        encoder(leaf)
    problems = {
        key: DriftInputs(*(feature.new_empty(feature.shape[1], count, feature.shape[2]) for count in recipe.per_label))
        for key, feature in features.items()
    }
    loss = FeatureDriftLoss(encoder, DriftLoss(TEMPERATURES))
    with torch.no_grad(), FlopCount() as drifting:
        lots = [loss.loss.joint_losses(lot) for lot in loss.lots(problems, 1)]
    return Work(
        generator_parameters=sum(parameter.numel() for parameter in generator.parameters()),
        encoder_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        keys=len(features),
        values=sum(feature[0].numel() for feature in features.values()),
        generate=generate.needed,
        generate_both_ways=generate_both_ways.needed,
        encode=encode.needed,
        encode_both_ways=encode_both_ways.needed,
        loss=drifting.needed,
        lots=len(lots),
    )
