"""Features of self-supervised ResNets: SimCLR and MoCo-v2 (paper Table 3)."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from domains.imagenet.encoders.imagenet_input import IMAGENET_MEAN, IMAGENET_STD, ImagenetInput
from domains.imagenet.encoders.map_statistics import channel_rms, map_statistics
from domains.imagenet.encoders.resnet_weights import load_resnet_weights
from domains.imagenet.frozen import FrozenModule, freeze, run, weight_dtype

if TYPE_CHECKING:
    from torchvision.models import ResNet


def every_second_and_last_block(blocks: Sequence[int]) -> tuple[str, ...]:
    """The maps that the paper names: after every second block of each stage, and the stage's final output.

    9 maps for [3, 4, 6, 3] blocks.
    """
    chosen = [sorted({*range(2, count + 1, 2), count}) for count in blocks]
    return tuple(f"layer{s}_blk{b}" for s, inner in enumerate(chosen, start=1) for b in inner)


class ResNetFeatures(FrozenModule):
    """Pooled statistics of the maps of a ResNet, and of its input, as the paper's A.5 states them.

    Keys: `<map>` and `<map>_<statistic>` (see `pooled_statistics`) of the maps `layer<s>_blk<b>`, the output of block b
    of stage s; `norm_x`, root mean square of each channel of what the network sees. ResNet-50 at 256 x 256: 9 maps, 64
    keys, 18 115 vectors. Batch norms use their stored statistics. The classification layer is not used.

    The paper names neither blocks nor input size for these encoders. The size is 256 here, that of its samples, though
    the networks were trained on 224: the maps are then 64, 32, 16 and 8 wide, which patches of 2 and 4 divide; at 224
    the last two, 14 and 7 wide, would refuse them.

    The network is taken over, not copied.

    Args:
        network: of torchvision.
        maps: names of maps; None is `every_second_and_last_block`.
        patch_sizes: patches for the statistics of each map.
        input_norm: include `norm_x`.
        size: side to which samples in [-1, 1] are resized; None leaves their size alone.
        mean, std: of the channels in [0, 1], by which the network's training normalised its images. MoCo's are those of
            ImageNet; conversions of SimCLR's TensorFlow release may want (0, 0, 0) and (1, 1, 1): ask their source.
        dtype: of weights and activations, statistics are taken in float32; None leaves the weights as they are.
        checkpoint: keep only the output of each block for the backward pass, and compute its inside again there.

    Raises:
        ValueError: a map that the network does not have, or nothing chosen at all.
    """

    def __init__(
        self,
        network: "ResNet",
        *,
        maps: Sequence[str] | None = None,
        patch_sizes: Sequence[int] = (2, 4),
        input_norm: bool = True,
        size: int | None = 256,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        dtype: torch.dtype | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        blocks = [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)]
        known = [f"layer{s}_blk{b}" for s, count in enumerate(blocks, start=1) for b in range(1, count + 1)]
        self.maps = every_second_and_last_block(blocks) if maps is None else tuple(maps)
        if unknown := [name for name in self.maps if name not in known]:
            raise ValueError(f"maps must be among {known}, got {unknown}")
        if not (self.maps or input_norm):
            raise ValueError("maps is empty and input_norm is off: choose at least one feature")
        self.patch_sizes, self.input_norm = tuple(patch_sizes), input_norm
        self.input = ImagenetInput(size, mean, std)
        self.network: ResNet = freeze(network, dtype)
        self.checkpoint = checkpoint
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        file: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """A ResNet-50 of published weights: MoCo's own files, torchvision's names, safetensors.

        Args:
            path: a file, a folder, or the id of a Hub repository.
            file: name of the file in folder or repository; not needed where it holds one file of weights only.
            revision: of the repository.
            options: arguments of the constructor.

        Raises:
            WeightsError: the file is not to be had, or holds other weights than those of a ResNet-50.
        """
        from torchvision.models import resnet50

        return cls(load_resnet_weights(resnet50(weights=None), path, file=file, revision=revision), **options)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, 3, H, W] in [-1, 1] -> {key: [K, F, D]}, float32; no `_p` keys for maps smaller than p x p."""
        network, seen = self.network, self.input(samples)
        x = network.relu(network.bn1(network.conv1(seen.to(weight_dtype(network)))))
        x = network.maxpool(x)
        maps = {}
        for s, stage in enumerate((network.layer1, network.layer2, network.layer3, network.layer4), start=1):
            for b, block in enumerate(stage, start=1):
                x = run(block, x, self.checkpoint)
                if (name := f"layer{s}_blk{b}") in self.maps:
                    maps[name] = x
        features = map_statistics({name: maps[name] for name in self.maps}, self.patch_sizes)
        if self.input_norm:
            features["norm_x"] = channel_rms(seen)
        return features
