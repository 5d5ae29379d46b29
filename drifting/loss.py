"""DriftLoss and drift_field: the public face of the engine. The paper's objective is Eq. 6 with the field of Alg. 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from drifting.diagnostics import DriftDiagnostics, diagnose
from drifting.engine import FrozenTargetLoss, References, compute_drift, gather_references, raw_drift
from drifting.fields import Field, MeanShift


@dataclass(frozen=True, slots=True)
class DriftTerms:
    """One evaluation of the loss. `loss` carries the gradient; everything else is detached."""

    loss: Tensor  # [B]  mean squared drift of each problem, nearly constant over training: do not judge by it
    drift: Tensor  # [B, G, D]  normalised, summed over temperatures, in scaled coordinates
    scale: Tensor  # []  mean pairwise distance, over every rank
    drift_rms: Tensor  # [T]  per temperature, before normalisation, over every rank; falls at the largest tau
    diagnostics: DriftDiagnostics


class DriftLoss(nn.Module):
    """Squared distance of generated samples to their frozen, drifted selves; at zero drift they match the data.

    The defaults equal the authors' released code in value and gradient. Any float type goes in; the mathematics is
    float32 (float64 for float64 samples), under autocast too.

    Args:
        temperatures: kernel widths tau, in units of the mean distance when features are normalised.
        field: rule that turns distances into attraction and repulsion.
        normalize_features: divide coordinates by S, one scalar for the whole batch (Eq. 18-21).
        normalize_drift: divide each temperature's drift by its RMS lambda, one scalar likewise (Eq. 23-25).
        process_group: ranks that share one batch, for S and lambda; None means the default group once
            torch.distributed is initialised, this process alone otherwise.

    Raises:
        ValueError: a temperature that is not finite and positive, or none at all.
    """

    def __init__(
        self,
        temperatures: Sequence[float] = (0.02, 0.05, 0.2),
        field: Field = MeanShift(),
        normalize_features: bool = True,
        normalize_drift: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperatures = _checked_temperatures(temperatures)
        self.field = field
        self.normalize_features = normalize_features
        self.normalize_drift = normalize_drift
        self.process_group = process_group

    def forward(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        *,
        gen_weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        neg_weight: Tensor | None = None,
        self_ref: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over problems, []; arguments as in `terms`."""
        return self.terms(
            gen,
            pos,
            neg,
            gen_weight=gen_weight,
            pos_weight=pos_weight,
            neg_weight=neg_weight,
            self_ref=self_ref,
        ).loss.mean()

    def terms(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        *,
        gen_weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        neg_weight: Tensor | None = None,
        self_ref: Tensor | None = None,
    ) -> DriftTerms:
        """Loss per problem, drift and diagnostics of B independent problems.

        Args:
            gen: generated samples [B, G, D]; the only argument that receives a gradient.
            pos: real samples [B, P, D].
            neg: extra negatives [B, N, D]: unconditional samples for guidance, for example.
            gen_weight: [B, G] ([B, G'] with `self_ref`) or [B]; multiplies affinities; None means 1.
            pos_weight: [B, P] or [B].
            neg_weight: [B, N] or [B]; see `guidance_weight`.
            self_ref: [B, G', D], an independent second generated batch that repels in place of `gen` itself.

        Raises:
            ValueError: shapes or types that do not fit, fewer than two generated samples without `self_ref`, no
                positives, negative or non-finite weights. Weights on an accelerator are checked there, without a host
                sync: a bad one stops the program by a device-side assertion.
        """
        references = _references(gen, pos, neg, gen_weight, pos_weight, neg_weight, self_ref)
        drift = compute_drift(
            references,
            self.field,
            self.temperatures,
            normalize_features=self.normalize_features,
            normalize_drift=self.normalize_drift,
            group=self.process_group,
        )
        loss: Tensor = FrozenTargetLoss.apply(gen, drift.drift, drift.unit)  # type: ignore[no-untyped-call]
        return DriftTerms(loss, drift.drift, drift.scale, drift.drift_rms, diagnose(references, drift))

    def extra_repr(self) -> str:
        """Settings, for print(module)."""
        return (
            f"temperatures={self.temperatures}, field={self.field}, "
            f"normalize_features={self.normalize_features}, normalize_drift={self.normalize_drift}"
        )


def drift_field(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    temperature: float = 0.05,
    field: Field = MeanShift(),
    mask_self: bool | None = None,
    gen_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    neg_weight: Tensor | None = None,
    self_ref: Tensor | None = None,
) -> Tensor:
    """Drift V [B, G, D] of one temperature in raw coordinates: no normalisation, no gradient, this process alone.

    `drift_field(x, y, field=MeanShift(floor=0))` is the paper's Alg. 2 as printed.

    Args:
        gen: [B, G, D]; further samples and weights as in `DriftLoss.terms`.
        pos: [B, P, D].
        neg: [B, N, D].
        temperature: kernel width tau, in the unit of the samples.
        field: rule that turns distances into attraction and repulsion.
        mask_self: overrides the `mask_self` of a `MeanShift` field.
        gen_weight: [B, G] ([B, G'] with `self_ref`) or [B].
        pos_weight: [B, P] or [B].
        neg_weight: [B, N] or [B].
        self_ref: [B, G', D].

    Raises:
        ValueError: as `DriftLoss.terms`; `mask_self` with a field that has no such setting.
    """
    if mask_self is not None:
        if not isinstance(field, MeanShift):
            raise ValueError(f"mask_self={mask_self} applies to MeanShift fields only, got field={field}")
        field = replace(field, mask_self=mask_self)
    (temperature,) = _checked_temperatures((temperature,))
    references = _references(gen, pos, neg, gen_weight, pos_weight, neg_weight, self_ref)
    return raw_drift(references, field, temperature).to(gen.dtype)


def _checked_temperatures(temperatures: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(tau) for tau in temperatures)
    if not values or not all(math.isfinite(tau) and tau > 0 for tau in values):
        raise ValueError(f"temperatures must be finite and > 0, and at least one, got {values}")
    return values


def _references(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    gen_weight: Tensor | None,
    pos_weight: Tensor | None,
    neg_weight: Tensor | None,
    self_ref: Tensor | None,
) -> References:
    """Check every argument, fill in unit weights, gather."""
    _check_gen(gen, self_ref)
    _check_block("pos", "P", pos, gen)
    if pos.shape[1] == 0:
        raise ValueError(f"pos must hold at least one positive per problem, got {tuple(pos.shape)}")
    own = gen if self_ref is None else self_ref
    if self_ref is not None:
        _check_block("self_ref", "G'", self_ref, gen)
        if self_ref.shape[1] == 0:
            raise ValueError(f"self_ref must hold at least one sample per problem, got {tuple(self_ref.shape)}")
    weights = [_weight("gen_weight", gen_weight, own)]
    if neg is not None:
        _check_block("neg", "N", neg, gen)
        weights.append(_weight("neg_weight", neg_weight, neg))
    elif neg_weight is not None:
        raise ValueError("neg_weight was given without neg; pass the extra negatives neg [B, N, D] as well")
    weights.append(_weight("pos_weight", pos_weight, pos))
    return gather_references(gen, pos, neg, self_ref, weights)


def _check_gen(gen: Tensor, self_ref: Tensor | None) -> None:
    if gen.ndim != 3 or not gen.is_floating_point():
        raise ValueError(f"gen must be a float tensor [B, G, D], got {gen.dtype} {tuple(gen.shape)}")
    if 0 in gen.shape:
        raise ValueError(f"gen must have B, G and D of at least one, got {tuple(gen.shape)}")
    if gen.shape[1] < 2 and self_ref is None:
        raise ValueError(
            f"gen must hold G >= 2 samples per problem, got {tuple(gen.shape)}: nothing repels a single sample, and "
            "the loss turns into regression with a fixed step; generate more, or pass self_ref, a second batch"
        )


def _check_block(name: str, letter: str, block: Tensor, gen: Tensor) -> None:
    expected = f"[B, {letter}, D] with B={gen.shape[0]}, D={gen.shape[2]} to match gen {tuple(gen.shape)}"
    if block.ndim != 3 or block.shape[0] != gen.shape[0] or block.shape[2] != gen.shape[2]:
        raise ValueError(f"{name} must be {expected}, got {tuple(block.shape)}")
    if not block.is_floating_point():
        raise ValueError(f"{name} must be a float tensor, got {block.dtype}; convert and scale it as gen is scaled")
    if block.device != gen.device:
        raise ValueError(f"{name} must be on gen's device {gen.device}, got {block.device}")


def _weight(name: str, weight: Tensor | None, block: Tensor) -> Tensor:
    """Weight [B, K] of a block [B, K, D]; ones where none is given, [B] repeated over the block."""
    shape = block.shape[:2]
    if weight is None:
        return block.new_ones(shape, dtype=torch.float32)
    if weight.shape not in (shape, shape[:1]):
        raise ValueError(f"{name} must be {list(shape)} or {list(shape[:1])}, got {tuple(weight.shape)}")
    if weight.device != block.device:
        raise ValueError(f"{name} must be on the samples' device {block.device}, got {weight.device}")
    message = f"{name} must be finite and >= 0"
    valid = (weight >= 0) & (weight < float("inf"))  # False for NaN
    if weight.device.type == "cpu":
        if not valid.all():
            raise ValueError(f"{message}, got {weight[~valid][0].item()}")
    else:
        torch._assert_async(valid.all(), message)
    return weight if weight.ndim == 2 else weight[:, None].expand(shape)
