"""Feature maps to named vectors, the same for every residual network (paper A.5)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from drifting.features import STD_EPS, pooled_statistics


def map_statistics(maps: Mapping[str, Tensor], patch_sizes: Sequence[int]) -> dict[str, Tensor]:
    """Maps {name: [K, C, h, w]} -> {name: [K, F, C], name_<statistic>: [K, F, C]}; see `pooled_statistics`."""
    return {
        f"{name}_{statistic}" if statistic else name: vectors
        for name, feature_map in maps.items()
        for statistic, vectors in pooled_statistics(feature_map, patch_sizes).items()
    }


def channel_rms(x: Tensor) -> Tensor:
    """Root mean square of every channel, the statistic of an encoder's input; x [K, C, h, w] -> [K, 1, C].

    The released code takes the root, with 1e-6 inside; the paper writes the mean square.
    """
    return (x.square().mean((2, 3)) + STD_EPS).sqrt().unsqueeze(1)
