"""Frozen encoders: samples to the named feature vectors in which images drift (paper A.5).

Shapes: K samples, F feature locations, D feature width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from domains.imagenet.mae import MaskedAutoencoder, to_grid
from domains.imagenet.mae_encoder import STEM
from drifting.features import STD_EPS, pooled_statistics


def every_second_block(blocks: Sequence[int]) -> tuple[str, ...]:
    """The maps of the released code: stem, each stage's output, and every second block of each stage.

    12 maps for the paper's [3, 4, 6, 3] blocks.
    """
    stages = [f"layer{s}" for s in range(1, len(blocks) + 1)]
    inner = [f"layer{s}_blk{b}" for s, count in enumerate(blocks, start=1) for b in range(2, count + 1, 2)]
    return (STEM, *stages, *inner)


class PixelFeatures(nn.Module):
    """The flattened sample as the only feature: the drifting loss without an encoder."""

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, *S] -> {"global": [K, 1, prod S]}."""
        return {"global": samples.flatten(1).unsqueeze(1)}


class MaeFeatures(nn.Module):
    """Pooled statistics of the maps of a trained masked auto-encoder, of its input, and the sample itself.

    Keys: `<map>` and `<map>_<statistic>` of each map (see `pooled_statistics`), `norm_x` (root mean square of each
    input channel), `global` (the flattened sample: the drifting loss without features).

    The encoder is taken over, not copied: it is frozen and stays in eval mode. Decoder and head are not kept.

    Args:
        mae: trained auto-encoder; no mask is applied here.
        maps: names of encoder maps; None is `every_second_block`.
        patch_sizes: patches for the statistics of each map; () gives the paper's "(a, b)", (2,) its "(a-c)".
        input_norm: include `norm_x`.
        sample_itself: include `global`.

    Raises:
        ValueError: a map that the encoder does not have, or nothing chosen at all.
    """

    def __init__(
        self,
        mae: MaskedAutoencoder,
        *,
        maps: Sequence[str] | None = None,
        patch_sizes: Sequence[int] = (2, 4),
        input_norm: bool = True,
        sample_itself: bool = True,
    ) -> None:
        super().__init__()
        self.maps = every_second_block(mae.cfg.blocks) if maps is None else tuple(maps)
        if unknown := [name for name in self.maps if name not in mae.encoder.map_widths]:
            raise ValueError(f"maps must be among {list(mae.encoder.map_widths)}, got {unknown}")
        if not (self.maps or input_norm or sample_itself):
            raise ValueError("maps is empty and input_norm and sample_itself are off: choose at least one feature")
        self.patch_sizes, self.input_norm, self.sample_itself = tuple(patch_sizes), input_norm, sample_itself
        self.cfg = mae.cfg
        self.encoder = mae.encoder.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "MaeFeatures":
        """Stays in eval mode whatever is asked: the features must not change while the generator trains."""
        return super().train(False)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, C, H, W] -> {key: [K, F, D]}, float32; no `_p` keys for maps smaller than p x p."""
        samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
        grid = to_grid(samples, self.cfg)
        maps = self.encoder(grid) if self.maps else {}
        features = {}
        for name in self.maps:
            for statistic, vectors in pooled_statistics(maps[name], self.patch_sizes).items():
                features[f"{name}_{statistic}" if statistic else name] = vectors
        if self.input_norm:
            features["norm_x"] = (grid.square().mean((2, 3)) + STD_EPS).sqrt().unsqueeze(1)
        if self.sample_itself:
            features["global"] = samples.flatten(1).unsqueeze(1)
        return features
