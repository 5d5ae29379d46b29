"""The engine: everything about a drifting loss that does not depend on the field.

    d_ij   = |x_i - y_j|                                      pairwise distances
    S      = mean(w d) / sqrt(D)                              feature scale, Eq. 18-21, one scalar for the whole batch
    c_tau  = field(d / (S sqrt(D)), tau)                      signed coefficients
    V_tau  = sum_j c_ij (y_j - x_i) / S                       drift in scaled coordinates
    V      = sum_tau V_tau / lambda_tau                       lambda = RMS of V_tau over the batch, Eq. 23-25
    L_b    = mean |x / S - sg(x / S + V)|^2 = mean V^2        Eq. 6, 26;  dL_b/dx = -2 V / (G D S)

The target is frozen, so the gradient is known in closed form: nothing here is differentiated, and one [B, G, D] tensor
is all that the backward pass keeps.
Shapes: B problems, G generated, N extra negatives, P positives, M = G + N + P references, D features, T temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from drifting.fields import Columns, Contact, Field
from drifting.scales import mean_distance, root_mean_square

SMALLEST_SQUARED_DISTANCE = 1e-8  # the authors' clip; keeps the root away from the rounding of the dot products
SMALLEST_SCALE = 1e-3  # of S and of the mean distance: a collapsed batch is not blown up
SMALLEST_DRIFT_MEAN_SQUARE = 1e-8  # of lambda^2: a batch without drift is not blown up


@dataclass(frozen=True, slots=True)
class References:
    """Samples and references of B problems in one coordinate frame: float32 or float64, centred per problem."""

    gen: Tensor  # [B, G, D]
    blocks: tuple[Tensor, ...]  # self [B, G', D], extra negatives [B, N, D] where there are some, positives [B, P, D]
    columns: Columns


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift of one batch and the statistics that normalised it."""

    drift: Tensor  # [B, G, D]  in scaled coordinates, summed over temperatures
    unit: Tensor  # []  S: what coordinates were divided by; 1 without feature normalisation
    scale: Tensor  # []  mean pairwise distance of the raw features
    drift_rms: Tensor  # [T]  lambda, per temperature, before normalisation
    contacts: tuple[Contact, ...]  # T of them


def pairwise_distance(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances by dot products; x [B, G, D], y [B, M, D] -> [B, G, M].

    Exact to rounding only for centred coordinates: an offset of 1000 costs every float32 digit.
    """
    squared = torch.baddbmm(x.square().sum(-1)[:, :, None], x, y.mT, alpha=-2)
    squared += y.square().sum(-1)[:, None, :]
    return squared.clamp_(min=SMALLEST_SQUARED_DISTANCE).sqrt_()


def gather_references(
    gen: Tensor, pos: Tensor, neg: Tensor | None, self_ref: Tensor | None, weights: Sequence[Tensor]
) -> References:
    """Bring samples [B, G|P|N|G', D] to one float type and centre each problem on the mean of its references.

    Args:
        gen: [B, G, D].
        pos: [B, P, D].
        neg: [B, N, D] or None.
        self_ref: [B, G', D], an independent second generated batch, or None for `gen` itself.
        weights: [B, G'], [B, N] and [B, P] in this order, without the second where `neg` is None.
    """
    dtype = torch.float64 if gen.dtype == torch.float64 else torch.float32
    x = gen.detach().to(dtype)
    own = x if self_ref is None else self_ref.detach().to(dtype)
    raw = [own, *(block.detach().to(dtype) for block in (neg, pos) if block is not None)]
    # Distances and displacements do not see translations; rounding does.
    num_references = sum(block.shape[1] for block in raw)
    centre = sum((block.sum(1, keepdim=True) for block in raw[1:]), raw[0].sum(1, keepdim=True)) / num_references
    blocks = [block - centre for block in raw]
    columns = Columns(
        num_self=own.shape[1],
        num_neg=0 if neg is None else neg.shape[1],
        num_pos=pos.shape[1],
        self_is_gen=self_ref is None,
        weight=torch.cat([weight.detach().to(dtype) for weight in weights], dim=-1),
    )
    return References(blocks[0] if self_ref is None else x - centre, tuple(blocks), columns)


def displacement(coefficients: Tensor, references: References) -> Tensor:
    """V_i = sum_j c_ij (y_j - x_i); coefficients [B, G, M] -> [B, G, D], in the references' coordinates."""
    drift = -coefficients.sum(-1, keepdim=True) * references.gen
    sizes = [block.shape[1] for block in references.blocks]
    for part, block in zip(torch.split(coefficients, sizes, dim=-1), references.blocks, strict=True):
        drift.baddbmm_(part, block)
    return drift


def distances(references: References) -> Tensor:
    """From every generated sample to every reference, [B, G, M]."""
    distance = torch.cat([pairwise_distance(references.gen, block) for block in references.blocks], dim=-1)
    if references.columns.self_is_gen:
        # Exactly the clip: dot products leave a self distance of sqrt(rounding), which would bias the mean distance.
        num_gen = references.gen.shape[1]
        distance[..., :num_gen].diagonal(dim1=-2, dim2=-1).fill_(SMALLEST_SQUARED_DISTANCE**0.5)
    return distance


@torch.no_grad()
def raw_drift(references: References, field: Field, temperature: float) -> Tensor:
    """Drift [B, G, D] at one temperature, nothing normalised; `temperature` in the samples' unit."""
    with torch.autocast(references.gen.device.type, enabled=False):
        coupling = field(distances(references), references.columns, temperature=temperature)
        return displacement(coupling.coefficients, references)


@torch.no_grad()
def compute_drift(
    references: References,
    field: Field,
    temperatures: Sequence[float],
    *,
    normalize_features: bool,
    normalize_drift: bool,
    group: ProcessGroup | None,
) -> Drift:
    """Drift of every generated sample; see the module's formulas. Two all-reduces where ranks share a batch."""
    with torch.autocast(references.gen.device.type, enabled=False):
        distance = distances(references)
        scale = mean_distance(distance, references.columns.weight, group)
        unit = torch.ones_like(scale)
        if normalize_features:
            unit = (scale / references.gen.shape[-1] ** 0.5).clamp(min=SMALLEST_SCALE)
            distance /= scale.clamp(min=SMALLEST_SCALE)

        drifts, contacts = [], []
        for temperature in temperatures:  # one coupling [B, G, M] alive at a time
            coupling = field(distance, references.columns, temperature=temperature)
            drifts.append(displacement(coupling.coefficients, references).div_(unit))
            contacts.append(coupling.contact)
        drift_rms = root_mean_square(drifts, group)
        if normalize_drift:
            for drift, rms in zip(drifts, drift_rms, strict=True):
                drift /= rms.clamp(min=SMALLEST_DRIFT_MEAN_SQUARE**0.5)
        total = drifts[0]
        for drift in drifts[1:]:
            total += drift
    return Drift(total, unit, scale, drift_rms, tuple(contacts))


class FrozenTargetLoss(torch.autograd.Function):
    """Per-problem loss mean |x/S - sg(x/S + V)|^2 (Eq. 26) with its closed-form gradient -2 V / (G D S)."""

    @staticmethod
    def forward(ctx: FunctionCtx, gen: Tensor, drift: Tensor, unit: Tensor) -> Tensor:
        """gen [B, G, D] (any float type), drift [B, G, D], unit [] -> [B] in the drift's type."""
        ctx.save_for_backward(drift, unit)
        ctx.gen_dtype = gen.dtype  # type: ignore[attr-defined]
        return drift.square().mean(dim=(1, 2))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        """grad_loss [B] -> gradient [B, G, D] in the samples' type."""
        drift, unit = ctx.saved_tensors  # type: ignore[attr-defined]
        factor = grad_loss * (-2.0 / (drift.shape[1] * drift.shape[2])) / unit  # [B]
        return (factor[:, None, None] * drift).to(ctx.gen_dtype), None, None  # type: ignore[attr-defined]
