"""Kernels, densities and sums of fields written once more as plainly as possible, in float64, for autograd.

No shared code with the library but `Columns`, in which a field is asked. Shapes as in drifting.fields.field.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from drifting import gaussian, laplacian
from drifting.fields import Columns
from drifting.kernels import InverseMultiquadric, Matern

PlainKernel = Callable[[Tensor], Tensor]
"""d / tau -> k."""


def matern_3_2(r: Tensor) -> Tensor:
    z = math.sqrt(3) * r
    return (1 + z) * torch.exp(-z)


def matern_5_2(r: Tensor) -> Tensor:
    z = math.sqrt(5) * r
    return (1 + z + z**2 / 3) * torch.exp(-z)


def matern_7_2(r: Tensor) -> Tensor:
    z = math.sqrt(7) * r
    return (1 + z + 2 * z**2 / 5 + z**3 / 15) * torch.exp(-z)


KERNELS: dict[str, tuple[object, PlainKernel]] = {
    "laplacian": (laplacian, lambda r: torch.exp(-r)),
    "gaussian": (gaussian, lambda r: torch.exp(-(r**2) / 2)),
    "matern_1_2": (Matern(0.5), lambda r: torch.exp(-r)),
    "matern_3_2": (Matern(1.5), matern_3_2),
    "matern_5_2": (Matern(2.5), matern_5_2),
    "matern_7_2": (Matern(3.5), matern_7_2),
    "imq_1_2": (InverseMultiquadric(0.5), lambda r: 1 / torch.sqrt(1 + r**2)),
    "imq_5_2": (InverseMultiquadric(2.5), lambda r: (1 + r**2) ** -2.5),
}


def clouds(*counts: int, width: int = 3, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Clouds [B, count, D] of different means, one per count."""
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, width, generator=rng, dtype=torch.float64) + 0.3 * k for k, count in enumerate(counts)
    ]


def some_weights(*counts: int, batch: int = 2) -> list[Tensor]:
    """Weights [B, count] in (0.2, 2.2), one per count."""
    rng = torch.Generator().manual_seed(5)
    return [0.2 + 2 * torch.rand(batch, count, generator=rng, dtype=torch.float64) for count in counts]


def affinities(kernel: PlainKernel, x: Tensor, y: Tensor, weight: Tensor, temperature: float, *, own: bool) -> Tensor:
    """w_j k(x_i, y_j) with its gradient in x, zero for pairs (i, i) where y is x's `own` batch; -> [B, G, K]."""
    square = (x[:, :, None] - y[:, None]).square().sum(-1)
    same = torch.eye(*square.shape[1:], dtype=torch.bool) if own else torch.zeros(square.shape[1:], dtype=torch.bool)
    value = kernel(square.masked_fill(same, 1.0).sqrt() / temperature) * weight[:, None]
    return value.masked_fill(same, 0.0)


def density(kernel: PlainKernel, x: Tensor, sides: list[tuple[Tensor, Tensor, bool]], temperature: float) -> Tensor:
    """Mean of k(x_i, .) over the joined samples (y, weight, own), by mass, a sample itself left out; -> [B, G]."""
    total = sum(affinities(kernel, x, y, weight, temperature, own=own).sum(-1) for y, weight, own in sides)
    mass = sum(weight.sum(-1, keepdim=True) - (weight if own else 0) for _, weight, own in sides)
    return total / mass


def columns_of(gen: Tensor, pos: Tensor, neg: Tensor | None, self_ref: Tensor | None, weights: list[Tensor]) -> Columns:
    weight = torch.cat(weights, dim=-1)
    own = gen if self_ref is None else self_ref
    return Columns(
        num_self=own.shape[1],
        num_neg=0 if neg is None else neg.shape[1],
        num_pos=pos.shape[1],
        self_is_gen=self_ref is None,
        weight=weight,
        weighted=slice(0, weight.shape[-1]),
    )


def ask(field, gen, pos, neg=None, *, self_ref=None, temperature=0.5, weights=None, with_contact=True):
    """The field's coupling of plain distances, the engine left out; `weights` in the order self, neg, pos."""
    own = gen if self_ref is None else self_ref
    blocks = [block for block in (own, neg, pos) if block is not None]
    weights = weights or [torch.ones(block.shape[:2], dtype=gen.dtype) for block in blocks]
    distance = (gen[:, :, None] - torch.cat(blocks, dim=1)[:, None]).square().sum(-1).clamp(min=1e-8).sqrt()
    columns = columns_of(gen, pos, neg, self_ref, weights)
    return field(distance, columns, temperature=temperature, with_contact=with_contact)


def direct_drift(field, gen, pos, neg=None, **named) -> Tensor:
    """V_i = sum_j c_ij (y_j - x_i) by differences; arguments of `ask`."""
    coupling = ask(field, gen, pos, neg, **named)
    own = named.get("self_ref")
    refs = torch.cat([b for b in (gen if own is None else own, neg, pos) if b is not None], dim=1)
    return (coupling.coefficients[..., None] * (refs[:, None] - gen[:, :, None])).sum(2)
