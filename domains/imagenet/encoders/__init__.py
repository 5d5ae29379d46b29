"""Frozen encoders: samples to the named feature vectors in which images drift (paper A.5).

All follow one protocol, that of `FeatureDriftLoss`: samples [K, C, H, W] -> {key: [K, F, D]}, differentiable in the
samples. Shapes: K samples, F feature locations, D feature width.
"""

from domains.imagenet.encoders.combined_features import CombinedFeatures
from domains.imagenet.encoders.convnext_features import ConvNextFeatures
from domains.imagenet.encoders.decoded_features import DecodedFeatures
from domains.imagenet.encoders.mae_features import MaeFeatures, every_second_block
from domains.imagenet.encoders.pixel_features import PixelFeatures
from domains.imagenet.encoders.resnet_features import ResNetFeatures

__all__ = [
    "CombinedFeatures",
    "ConvNextFeatures",
    "DecodedFeatures",
    "MaeFeatures",
    "PixelFeatures",
    "ResNetFeatures",
    "every_second_block",
]
