"""The 2-D distributions of the paper's figures.

A target is a bounded cloud with named geometry: `draw` gives samples, `region` tells which of `num_regions` equally
likely parts (a mode, a square, a stretch of the roll) a point belongs to, -1 for none.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor


class Target(Protocol):
    """A distribution in the plane whose regions are equally likely."""

    @property
    def num_regions(self) -> int:
        """How many equally likely regions there are."""
        ...

    def draw(self, num: int, generator: Generator | None = None) -> Tensor:
        """`num` independent samples [num, 2], float32 on the CPU; torch's global generator when none is given."""
        ...

    def region(self, points: Tensor) -> Tensor:
        """Region in 0 .. num_regions - 1 of each of [K, 2] points, -1 outside all; [K] int64."""
        ...


@dataclass(frozen=True)
class TwoModes:
    """Two horizontally elongated normal modes, one above the other (Fig. 3): means (0, +-height), spreads `std`."""

    height: float = 1.0
    std: tuple[float, float] = (0.5, 0.15)
    num_regions: int = 2

    def draw(self, num: int, generator: Generator | None = None) -> Tensor:
        """Upper and lower mode with probability one half each."""
        lower = torch.randint(2, (num,), generator=generator)
        return self.draw_mode(lower, generator)

    def draw_mode(self, mode: Tensor, generator: Generator | None = None) -> Tensor:
        """One sample of each asked mode; [num] with 0 = upper, 1 = lower -> [num, 2]."""
        points = torch.randn(len(mode), 2, generator=generator) * torch.tensor(self.std)
        points[:, 1] += self.height * (1 - 2 * mode)
        return points

    def density(self, points: Tensor) -> Tensor:
        """Probability density at [..., 2] points, relative to a mode's peak; [...]."""
        x, y = (points / torch.tensor(self.std)).unbind(-1)
        height = self.height / self.std[1]
        return (-0.5 * x**2).exp() * ((-0.5 * (y - height) ** 2).exp() + (-0.5 * (y + height) ** 2).exp())

    def region(self, points: Tensor) -> Tensor:
        """0 above the horizontal axis, 1 below."""
        return (points[:, 1] < 0).long()


@dataclass(frozen=True)
class SwissRoll:
    """Spiral (t cos t, t sin t) / 4.5 pi, t uniform in [pi/2, 9 pi/2], plus normal noise (Fig. 4).

    The authors' notebook divides by the batch's largest coordinate; 4.5 pi is its supremum, and keeps samples
    independent. Regions are eight stretches of equal length in t.
    """

    noise: float = 0.03
    num_regions: int = 8

    def draw(self, num: int, generator: Generator | None = None) -> Tensor:
        """Samples in [-1, 1]^2 up to the noise."""
        clean = self.curve(torch.rand(num, generator=generator))
        return clean + self.noise * torch.randn(num, 2, generator=generator)

    def curve(self, u: Tensor) -> Tensor:
        """Point of the noiseless roll at u in [0, 1]; [K] -> [K, 2]."""
        t = math.pi * (0.5 + 4 * u)
        return torch.stack([t * t.cos(), t * t.sin()], dim=-1) / (4.5 * math.pi)

    def region(self, points: Tensor) -> Tensor:
        """Stretch of the nearest point of the roll; -1 further than four noise widths from it."""
        u = torch.linspace(0, 1, 801)
        distance, nearest = torch.cdist(points, self.curve(u)).min(dim=1)
        stretch = (u[nearest] * self.num_regions).long().clamp(max=self.num_regions - 1)
        return stretch.where(distance < 4 * self.noise, -1)


@dataclass(frozen=True)
class Checkerboard:
    """The eight dark squares of a 4 x 4 board on [-1, 1]^2, plus normal noise (Fig. 4); regions are the squares."""

    noise: float = 0.05
    num_regions: int = 8

    def draw(self, num: int, generator: Generator | None = None) -> Tensor:
        """Columns and rows of equal parity: ((i + u, j + v) - 2) / 2, i = 2 Bernoulli + b, j = 2 Bernoulli + b."""
        parity = torch.randint(2, (num, 1), generator=generator)
        cell = 2 * torch.randint(2, (num, 2), generator=generator) + parity
        clean = (cell + torch.rand(num, 2, generator=generator) - 2) / 2
        return clean + self.noise * torch.randn(num, 2, generator=generator)

    def region(self, points: Tensor) -> Tensor:
        """Dark square of each point; -1 on light squares and beside the board."""
        cell = (points * 2 + 2).floor().long()
        column, row = cell.unbind(-1)
        dark = (cell >= 0).all(-1) & (cell < 4).all(-1) & ((column + row) % 2 == 0)
        return (2 * row + column // 2).where(dark, -1)


TARGETS: dict[str, Target] = {"swiss_roll": SwissRoll(), "checkerboard": Checkerboard()}
"""What the networks of Fig. 4 learn, one drifting problem each."""
