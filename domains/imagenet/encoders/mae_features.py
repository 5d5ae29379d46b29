"""Features of the masked auto-encoder (paper A.3, A.5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from domains.imagenet.encoders.map_statistics import channel_rms, map_statistics
from domains.imagenet.frozen import FrozenModule, freeze, weight_dtype
from domains.imagenet.mae import MaskedAutoencoder, to_grid
from domains.imagenet.mae_encoder import STEM
from domains.imagenet.transformer import at_least_float32


def every_second_block(blocks: Sequence[int]) -> tuple[str, ...]:
    """The maps of the released code: stem, each stage's output, and every second block of each stage.

    12 maps for the paper's [3, 4, 6, 3] blocks.
    """
    stages = [f"layer{s}" for s in range(1, len(blocks) + 1)]
    inner = [f"layer{s}_blk{b}" for s, count in enumerate(blocks, start=1) for b in range(2, count + 1, 2)]
    return (STEM, *stages, *inner)


class MaeFeatures(FrozenModule):
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
        dtype: of weights and activations, statistics are taken in float32; None leaves the weights as they are.
        checkpoint: keep only the output of each block for the backward pass, and compute its inside again there.

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
        dtype: torch.dtype | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.maps = every_second_block(mae.cfg.blocks) if maps is None else tuple(maps)
        if unknown := [name for name in self.maps if name not in mae.encoder.map_widths]:
            raise ValueError(f"maps must be among {list(mae.encoder.map_widths)}, got {unknown}")
        if not (self.maps or input_norm or sample_itself):
            raise ValueError("maps is empty and input_norm and sample_itself are off: choose at least one feature")
        self.patch_sizes, self.input_norm, self.sample_itself = tuple(patch_sizes), input_norm, sample_itself
        self.checkpoint = checkpoint
        self.cfg = mae.cfg
        self.encoder = freeze(mae.encoder, dtype)
        self.eval()

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, C, H, W] -> {key: [K, F, D]}, float32; no `_p` keys for maps smaller than p x p."""
        samples = at_least_float32(samples)
        grid = to_grid(samples, self.cfg)
        maps = self.encoder(grid.to(weight_dtype(self.encoder)), self.checkpoint) if self.maps else {}
        features = map_statistics({name: maps[name] for name in self.maps}, self.patch_sizes)
        if self.input_norm:
            features["norm_x"] = channel_rms(grid)
        if self.sample_itself:
            features["global"] = samples.flatten(1).unsqueeze(1)
        return features
