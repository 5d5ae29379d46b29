"""Decoder of the masked auto-encoder: back from the smallest map to the input, with skips (paper A.3; training only).

Shapes: K samples, C base channels, maps [K, c, h, w].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.mae_encoder import STEM, conv3x3, group_norm


class ConvNormRelu(nn.Sequential):
    """3 x 3 convolution, group norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, max_groups: int) -> None:
        super().__init__(conv3x3(inputs, outputs), group_norm(outputs, max_groups), nn.ReLU())


class UpBlock(nn.Module):
    """Resize to the skip's resolution, join with it, refine."""

    def __init__(self, inputs: int, skip: int, outputs: int, max_groups: int) -> None:
        super().__init__()
        self.join_norm = group_norm(inputs + skip, max_groups)
        self.project = ConvNormRelu(inputs + skip, outputs, max_groups)
        self.refine = ConvNormRelu(outputs, outputs, max_groups)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [K, inputs, h, w], skip [K, skip, H, W] -> [K, outputs, H, W]."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.refine(self.project(self.join_norm(torch.cat([x, skip], dim=1))))


class MaeDecoder(nn.Module):
    """Stage outputs and stem of the encoder to the reconstruction of its input."""

    def __init__(self, channels: int, base_channels: int, num_stages: int, max_groups: int = 32) -> None:
        super().__init__()
        widths = [base_channels, *(base_channels * 2**s for s in range(num_stages))]  # stem, stages 1..
        self.skips = [STEM, *(f"layer{s}" for s in range(1, num_stages + 1))]
        self.bridge = ConvNormRelu(widths[-1], widths[-1], max_groups)
        self.ups = nn.ModuleList(
            UpBlock(inputs, skip, skip, max_groups) for inputs, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(base_channels, channels, kernel_size=1)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Encoder maps -> [K, channels, h, w]."""
        x = self.bridge(maps[self.skips[-1]])
        for up, name in zip(self.ups, self.skips[-2::-1], strict=True):
            x = up(x, maps[name])
        return self.head(x)
