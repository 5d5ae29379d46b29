"""Residual encoder of the masked auto-encoder: the feature extractor of the drifting loss (paper A.3).

A 3 x 3 stem at full resolution, then stages of basic blocks at widths C, 2C, 4C, ..., each stage after the first at
half the resolution of the one before. Group norms everywhere, one more after each stage.

Shapes: K samples, C base channels, maps [K, c, h, w].
"""

import torch.nn.functional as F
from torch import Tensor, nn

from domains.imagenet.frozen import run

NORM_EPS = 1e-6
STEM = "conv1"


def group_norm(channels: int, max_groups: int) -> nn.GroupNorm:
    """Group norm with the largest number of groups that divides `channels` and is at most `max_groups`."""
    groups = next(g for g in range(min(max_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias (a norm follows) that keeps the resolution, up to the stride."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))); the shortcut is a 1 x 1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, max_groups: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = group_norm(outputs, max_groups)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = group_norm(outputs, max_groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, group_norm(outputs, max_groups))

    def forward(self, x: Tensor) -> Tensor:
        """x [K, inputs, h, w] -> [K, outputs, h / stride, w / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class ResNetEncoder(nn.Module):
    """Image to named feature maps.

    Names: `conv1` (the stem), `layer<s>` (stage s = 1.., after its extra norm), `layer<s>_blk<b>` (raw output of block
    b of stage s). `map_widths` gives the channels of each.

    Args:
        channels: of the input.
        base_channels: width C of stem and first stage; doubles with each stage.
        blocks: number of blocks of each stage.
        max_groups: upper bound on the groups of every norm. With as many groups as channels a norm erases the mean of
            every channel, so small widths want few groups.
    """

    def __init__(self, channels: int, base_channels: int, blocks: tuple[int, ...], max_groups: int = 32) -> None:
        super().__init__()
        self.stem = conv3x3(channels, base_channels)
        self.stem_norm = group_norm(base_channels, max_groups)
        self.stages, self.stage_norms = nn.ModuleList(), nn.ModuleList()  # a stage is a ModuleList of its blocks
        self.map_widths = {STEM: base_channels}
        inputs = base_channels
        for s, count in enumerate(blocks):
            outputs, stride = base_channels * 2**s, 1 if s == 0 else 2
            self.stages.append(
                nn.ModuleList(
                    BasicBlock(inputs if b == 0 else outputs, outputs, stride if b == 0 else 1, max_groups)
                    for b in range(count)
                )
            )
            self.stage_norms.append(group_norm(outputs, max_groups))
            names = [f"layer{s + 1}", *(f"layer{s + 1}_blk{b + 1}" for b in range(count))]
            self.map_widths |= dict.fromkeys(names, outputs)
            inputs = outputs

    def forward(self, x: Tensor, checkpoint: bool = False) -> dict[str, Tensor]:
        """x [K, channels, h, w] -> every named map; [K, C r, h / r, w / r], r = 2^(s-1) in stage s, 1 in the stem.

        With `checkpoint` the inside of each block is not kept for the backward pass but computed again there.
        """
        x = F.relu(self.stem_norm(self.stem(x)))
        maps = {STEM: x}
        for s, (stage, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True), start=1):
            for b, block in enumerate(stage.children(), start=1):
                x = run(block, x, checkpoint)
                maps[f"layer{s}_blk{b}"] = x
            x = norm(x)
            maps[f"layer{s}"] = x
        return maps
