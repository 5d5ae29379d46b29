"""Kernel distance: KID (Binkowski et al. 2018) in Inception features; torch-fidelity computes it."""

from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


def kernel_distance(x: Tensor, y: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3, mean over random subsets; features x [n, d], y [m, d].

    Unbiased: of equal distributions it scatters about 0, and may be negative. Subsets have `subset_size` samples, or as
    many as the smaller set.
    """
    metric = kid_features_to_metric(
        x.double(),
        y.double(),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(x), len(y)),
        rng_seed=SEED,
        verbose=False,
    )
    return float(metric[KEY_METRIC_KID_MEAN])
