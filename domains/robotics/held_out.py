"""How well a policy's chunks describe what the expert did where it was not trained: the figures that choose settings.

The loss of a drifting policy says nothing (it is nearly constant), and a mean error alone punishes a policy for having
modes. All figures are in normalised units.
Shapes: N windows, n samples of each, H timesteps, A action dimensions, D = H A.

=====  ==================================================================================================
mse    squared error of the mean over samples, per dimension
best   squared error of the best of n samples
spread standard deviation over samples, over that of the actions in all windows
ssr    spread-skill ratio sqrt(var (1 + 1/n) / mse): 1 is calibrated, below 1 over-confident
es     energy score (E|x - y| - E|x - x'| / 2) / sqrt(D): a proper score, lower is better
jerk   mean absolute second difference over time, over that of the expert's chunks: 1 is as smooth; from H = 3 on
=====  ==================================================================================================
"""

import torch
from torch import Tensor

from domains.robotics.chunk_policy import ChunkPolicy, Windows
from domains.robotics.config import HeldOutConfig


def chunk_figures(samples: Tensor, expert: Tensor) -> dict[str, Tensor]:
    """The figures of samples [N, n, H, A] against the expert's chunks [N, H, A], each [].

    Raises:
        ValueError: fewer than two samples, or shapes that do not fit.
    """
    if samples.ndim != 4 or samples[:, 0].shape != expert.shape or samples.shape[1] < 2:
        raise ValueError(
            f"samples must be [N, n >= 2, H, A] of expert [N, H, A], got {tuple(samples.shape)} and "
            f"{tuple(expert.shape)}"
        )
    samples, expert = samples.double(), expert.double()  # squared distances of nearly equal chunks
    num = samples.shape[1]
    variance = samples.var(1, correction=1).mean()
    mse = (samples.mean(1) - expert).square().mean()
    rows, target = samples.flatten(2), expert.flatten(1)[:, None]
    error = torch.cdist(rows, target)[..., 0]  # [N, n]
    # The mean over different samples, i != j: unbiased for any n.
    between = torch.cdist(rows, rows).sum((1, 2)) / (num * (num - 1))
    dim = rows.shape[-1]
    figures = {
        "mse": mse,
        "best": error.amin(1).square().mean() / dim,
        "spread": variance.sqrt() / expert.flatten(0, 1).var(0, correction=0).mean().sqrt(),
        "ssr": (variance * (1 + 1 / num) / mse).sqrt(),
        "es": (error.mean(1) - between / 2).mean() / dim**0.5,
    }
    if expert.shape[1] > 2:
        figures["jerk"] = samples.diff(n=2, dim=2).abs().mean() / expert.diff(n=2, dim=1).abs().mean()
    return figures


def held_out_figures(policy: ChunkPolicy, windows: Windows, config: HeldOutConfig, *, seed: int) -> dict[str, Tensor]:
    """`chunk_figures` of a policy on held-out windows, by name "held_out/<figure>"; the same noise for one seed."""
    generator = torch.Generator().manual_seed(seed)
    samples = policy.sample(windows.observations, config.samples, generator, normalized=True)
    expert = policy.actions.encode(windows.actions.to(policy.device), windows.observations)
    return {f"held_out/{name}": value for name, value in chunk_figures(samples, expert).items()}
