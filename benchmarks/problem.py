"""The drifting problems that the loss benchmarks solve.

Shapes: B problems, G generated, P positives, N extra negatives, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEG_WEIGHT = 0.7  # of each extra negative: what guidance scale alpha = 1.18 gives for G = 64, N = 16
OFFSET = 0.3  # of the positives, so that there is something to drift towards


class Shape(NamedTuple):
    B: int
    G: int
    P: int
    N: int
    D: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Of "B,G,P,N,D"."""
        return cls(*map(int, text.split(",")))

    @property
    def gen_bytes(self) -> int:
        """Size of the generated samples [B, G, D] in float32."""
        return 4 * self.B * self.G * self.D

    def __str__(self) -> str:
        return "B={} G={} P={} N={} D={}".format(*self)


class Problem(NamedTuple):
    gen: Tensor  # [B, G, D]
    pos: Tensor  # [B, P, D]
    neg: Tensor | None  # [B, N, D]; None for N = 0
    neg_weight: Tensor | None  # [B, N]

    def to(self, device: str) -> "Problem":
        """The same on another device."""
        return Problem(*(None if block is None else block.to(device) for block in self))


def draw(shape: Shape, seed: int = 0) -> Problem:
    """Standard normal samples, float32; the positives shifted by 0.3 in every coordinate."""
    source = torch.Generator().manual_seed(seed)
    gen = torch.randn(shape.B, shape.G, shape.D, generator=source)
    pos = torch.randn(shape.B, shape.P, shape.D, generator=source).add_(OFFSET)
    if shape.N == 0:
        return Problem(gen, pos, None, None)
    neg = torch.randn(shape.B, shape.N, shape.D, generator=source)
    return Problem(gen, pos, neg, torch.full((shape.B, shape.N), NEG_WEIGHT))
