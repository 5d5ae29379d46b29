"""DriftLoss and drift_field: the public face of the engine. The paper's objective is Eq. 6 with the field of Alg. 2."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from drifting.arguments import DriftInputs, all_problems
from drifting.compilation import outside_graph
from drifting.diagnostics import DriftDiagnostics, diagnose
from drifting.engine import BatchStatistics, FrozenTargetLoss, batch_statistics, compute_drifts, raw_drift
from drifting.fields import Field, MeanShift
from drifting.finite_check import DeferredFiniteCheck
from drifting.learned_temperature import LearnedTemperature
from drifting.problems import Problems
from drifting.scales import Extent
from drifting.sharding import gather_generated, take_own
from drifting.walks import Drift, Normalization


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
    float32 (float64 for float64 samples), under autocast and TF32 settings too.

    `temperatures` and `gain` may be set between calls, by a schedule for example (`drifting.schedules`).

    Args:
        temperatures: kernel widths tau, in units of the mean distance when features are normalised; numbers, or
            `LearnedTemperature` modules, whose parameters become the loss's own.
        field: rule that turns distances into attraction and repulsion.
        normalize_features: divide coordinates by S (Eq. 18-21).
        normalize_drift: divide each temperature's drift by its RMS lambda (Eq. 23-25).
        process_group: ranks that share one batch, for S and lambda; None means the default group once
            torch.distributed is initialised, this process alone otherwise.
        feature_extent: what S is a mean over; the paper's is one scalar for the whole batch.
        drift_extent: what lambda is a mean over; likewise.
        gain: factor on the normalised drift, the length of a step; 1 in the paper.
        refuse_nonfinite: raise a ValueError for NaN or infinite samples, on the CPU in the same call, on an
            accelerator in a later one, since nothing waits for the device. Otherwise they are carried: every loss of
            the batch becomes NaN through S or lambda, or that problem's alone where neither is shared.
        shard_generated: ranks that share the generated samples of the same problems: each gives its own G_r of them,
            with the same positives and extra negatives, and gets the loss of its own, mean over G_r. The mean over
            ranks, of losses and of gradients, is that of one process with all of them; see `drifting.sharding`.

    Raises:
        ValueError: a temperature that is not finite and positive, or none at all; a gain that is not finite and >= 0.
    """

    def __init__(
        self,
        temperatures: Sequence[float | LearnedTemperature] = (0.02, 0.05, 0.2),
        field: Field = MeanShift(),
        normalize_features: bool = True,
        normalize_drift: bool = True,
        process_group: ProcessGroup | None = None,
        *,
        feature_extent: Extent = Extent.BATCH,
        drift_extent: Extent = Extent.BATCH,
        gain: float = 1.0,
        refuse_nonfinite: bool = False,
        shard_generated: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperatures = temperatures
        self.field = field
        self.normalize_features = normalize_features
        self.normalize_drift = normalize_drift
        self.process_group = process_group
        self.feature_extent = feature_extent
        self.drift_extent = drift_extent
        self.gain = gain
        self.refuse_nonfinite = refuse_nonfinite
        self.shard_generated = shard_generated
        self._finite_check = DeferredFiniteCheck()

    @property
    def temperatures(self) -> tuple[float | LearnedTemperature, ...]:
        """Kernel widths tau."""
        return self._temperatures

    @temperatures.setter
    def temperatures(self, temperatures: Sequence[float | LearnedTemperature]) -> None:
        self._temperatures = _checked_temperatures(temperatures)
        self.learned_temperatures = nn.ModuleList(t for t in self._temperatures if isinstance(t, LearnedTemperature))

    @property
    def gain(self) -> float:
        """Factor on the normalised drift."""
        return self._gain

    @gain.setter
    def gain(self, gain: float) -> None:
        if not 0 <= gain < float("inf"):
            raise ValueError(f"gain must be finite and >= 0, got {gain}")
        self._gain = float(gain)

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
        inputs = DriftInputs(gen, pos, neg, gen_weight, pos_weight, neg_weight, self_ref)
        return self.joint_losses([inputs])[0].mean()

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
        return self.joint_terms([DriftInputs(gen, pos, neg, gen_weight, pos_weight, neg_weight, self_ref)])[0]

    @outside_graph
    def joint_losses(self, inputs: Sequence[DriftInputs], statistics: BatchStatistics | None = None) -> list[Tensor]:
        """Losses per problem of K sets of problems, K of [B]: each set has an S and a lambda of its own.

        Sets of equal shape are processed side by side, and ranks exchange the statistics of all sets at once. Sets that
        are a part of a larger batch take the `statistics` of that batch; see `joint_statistics`.
        """
        whole = self._whole(inputs)
        problems = all_problems(whole)
        drifts = self._own(self._drifts(whole, problems, with_contact=False, statistics=statistics))
        return [
            _frozen_target_loss(given.gen, drift, drift_is_ours=True)
            for given, drift in zip(inputs, drifts, strict=True)
        ]

    @outside_graph
    def joint_terms(self, inputs: Sequence[DriftInputs], statistics: BatchStatistics | None = None) -> list[DriftTerms]:
        """Terms of K sets of problems; see `joint_losses`."""
        whole = self._whole(inputs)
        problems = all_problems(whole)
        drifts = self._own(self._drifts(whole, problems, with_contact=True, statistics=statistics))
        return [
            DriftTerms(
                loss=_frozen_target_loss(given.gen, drift, drift_is_ours=False),
                drift=drift.drift,
                scale=drift.scale,
                drift_rms=drift.drift_rms,
                diagnostics=diagnose(all_samples, drift),
            )
            for given, all_samples, drift in zip(inputs, problems, drifts, strict=True)
        ]

    @outside_graph
    def joint_statistics(self, parts: Callable[[], Iterable[Iterable[Sequence[DriftInputs]]]]) -> BatchStatistics:
        """Statistics of K sets of problems that come in parts, each part a lot of sets at a time.

        `parts` is called twice, for the same parts. Two all-reduces, whatever the number of parts and lots.
        """

        def problems() -> Iterator[Iterator[list[Problems]]]:
            for part in parts():
                yield (all_problems(self._whole(lot)) for lot in part)

        return batch_statistics(problems, self.field, self._values(), self.normalization)

    def _whole(self, inputs: Sequence[DriftInputs]) -> Sequence[DriftInputs]:
        """The sets with the generated samples of all ranks that share them."""
        return inputs if self.shard_generated is None else gather_generated(inputs, self.shard_generated)

    def _own(self, drifts: list[Drift]) -> list[Drift]:
        """The drifts of this rank's samples."""
        return drifts if self.shard_generated is None else [take_own(drift, self.shard_generated) for drift in drifts]

    @property
    def normalization(self) -> Normalization:
        """How features and drifts are normalised."""
        return Normalization(
            features=self.normalize_features,
            drift=self.normalize_drift,
            feature_extent=self.feature_extent,
            drift_extent=self.drift_extent,
            group=self.process_group,
        )

    def _drifts(
        self,
        inputs: Sequence[DriftInputs],
        problems: Sequence[Problems],
        *,
        with_contact: bool,
        statistics: BatchStatistics | None = None,
    ) -> list[Drift]:
        drifts = compute_drifts(
            problems,
            self.field,
            self._values(),
            self.normalization,
            gain=self.gain,
            with_contact=with_contact,
            statistics=statistics,
        )
        if self.refuse_nonfinite:
            self._finite_check.watch(torch.stack([drift.scale for drift in drifts]), inputs)
        return drifts

    def _values(self) -> list[float | Tensor]:
        return [_value(temperature) for temperature in self.temperatures]

    def extra_repr(self) -> str:
        """Settings, for print(module)."""
        return (
            f"temperatures={self.temperatures}, field={self.field}, "
            f"normalize_features={self.normalize_features}, normalize_drift={self.normalize_drift}"
        )


@outside_graph
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
    (checked,) = _checked_temperatures((temperature,))
    problems = DriftInputs(gen, pos, neg, gen_weight, pos_weight, neg_weight, self_ref).problems()
    return raw_drift(problems, field, _value(checked)).to(gen.dtype)


def _checked_temperatures(temperatures: Sequence[float | LearnedTemperature]) -> tuple[float | LearnedTemperature, ...]:
    values = tuple(tau if isinstance(tau, LearnedTemperature) else float(tau) for tau in temperatures)
    valid = all(isinstance(tau, LearnedTemperature) or (math.isfinite(tau) and tau > 0) for tau in values)
    if not values or not valid:
        raise ValueError(f"temperatures must be finite and > 0, and at least one, got {values}")
    return values


def _value(temperature: float | LearnedTemperature) -> float | Tensor:
    return temperature().detach() if isinstance(temperature, LearnedTemperature) else temperature


def _frozen_target_loss(gen: Tensor, drift: Drift, *, drift_is_ours: bool) -> Tensor:
    loss: Tensor = FrozenTargetLoss.apply(gen, drift.drift, drift.unit, drift_is_ours)  # type: ignore[no-untyped-call]
    return loss
