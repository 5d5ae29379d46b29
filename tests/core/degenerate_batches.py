"""Clouds, and batches that try to make arithmetic overflow, cancel or divide by zero; each a function of a count n.

They give float32 samples [2, n, 16] where their names say nothing else.
"""

import torch


def cloud(count: int, *, batch: int = 2, width: int = 16, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed + 10 * count)
    return torch.randn(batch, count, width, generator=rng)


DEGENERATE = {
    "huge": lambda n: cloud(n) * 1e15,
    "tiny": lambda n: cloud(n) * 1e-20,
    "zero": lambda n: torch.zeros(2, n, 16),
    "identical": lambda n: torch.full((2, n, 16), 123.456),
    "far apart": lambda n: cloud(n) + 1e6 * (n % 4),
    "outlier": lambda n: torch.cat([cloud(n)[:, 1:], torch.full((2, 1, 16), 1e8)], dim=1),
    "one feature": lambda n: cloud(n, width=1),
    "one problem": lambda n: cloud(n, batch=1),
}
