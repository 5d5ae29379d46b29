"""The engine: everything about a drifting loss that does not depend on the field.

    d_ij   = |x_i - y_j|                                      pairwise distances
    S      = mean(w d) / sqrt(D)                              feature scale, Eq. 18-21, one scalar for the whole batch
    c_tau  = field(d / (S sqrt(D)), tau)                      signed coefficients
    V_tau  = sum_j c_ij (y_j - x_i) / S                       drift in scaled coordinates
    V      = sum_tau V_tau / lambda_tau                       lambda = RMS of V_tau over the batch, Eq. 23-25
    L_b    = mean |x / S - sg(x / S + V)|^2 = mean V^2        Eq. 6, 26;  dL_b/dx = -2 V / (G D S)

Where things are: `problems` (blocks of problems in one frame), `distances`, `walks` (distances, then couplings once S
is known, then the drift once lambda is), `superposition` (the sum over temperatures), here the statistics over sets and
ranks, and the loss. The target is frozen, so the gradient is known in closed form: nothing is differentiated, and one
[B, G, D] tensor is all that the backward pass keeps.
Shapes: B problems, G generated, M references, D features, T temperatures, K sets of problems (features).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from drifting.fields import Field
from drifting.fused.fits import fits
from drifting.problems import Problems
from drifting.scales import global_mean
from drifting.walks import Drift, GroupWalk, Normalization, PlainWalk


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in full float32, whatever autocast or `set_float32_matmul_precision` say.

    TF32 keeps ten bits of a coordinate: with features 100 away from the origin nothing is left of the distances.
    """
    autocast = nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
    # Triton starts its kernels on the current device, wherever the samples are.
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with _precision, autocast, current:
        yield


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What the two normalisers of a batch are made of, for K sets of problems; the means over all ranks."""

    scale: Tensor  # [K]  mean distance
    mean_square: Tensor  # [K, T]  of the drift's coordinates, before normalisation

    def split(self, sizes: list[int]) -> "list[BatchStatistics]":
        """Those of the first sizes[0] sets, of the next sizes[1], and so on."""
        pieces = zip(self.scale.split_with_sizes(sizes), self.mean_square.split_with_sizes(sizes), strict=True)
        return [BatchStatistics(scale, mean_square) for scale, mean_square in pieces]


class _FullProducts:
    """Holds the process's product precision at "highest" until the last of the threads that asked has left."""

    def __init__(self) -> None:
        self.lock, self.inside, self.chosen = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.chosen = torch.get_float32_matmul_precision()
                if self.chosen != "highest":
                    torch.set_float32_matmul_precision("highest")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.chosen != "highest":
                torch.set_float32_matmul_precision(self.chosen)


_precision = _FullProducts()


def walk_over(sets: Sequence[Problems], field: Field, num_temperatures: int, normalization: Normalization) -> GroupWalk:
    """How sets of one signature are processed under `field`, at T temperatures."""
    if not fits(sets[0], field, normalization):
        return PlainWalk(sets, num_temperatures, normalization)
    from drifting.fused.walk import FusedWalk

    return FusedWalk(sets, num_temperatures, normalization)


@torch.no_grad()
def raw_drift(problems: Problems, field: Field, temperature: float | Tensor) -> Tensor:
    """Drift [B, G, D] at one temperature, nothing normalised; `temperature` in the samples' unit."""
    with full_precision(problems.gen.device):
        walk = walk_over([problems], field, 1, Normalization(features=False, drift=False))
        total, mass = walk.distances()
        walk.set_scale(total / mass)
        square, count = walk.couplings(field, [temperature], with_contact=False)
        (drift,) = walk.drifts(square / count, gain=1.0)
    return drift.drift


@torch.no_grad()
def compute_drifts(
    sets: Sequence[Problems],
    field: Field,
    temperatures: Sequence[float | Tensor],
    normalization: Normalization,
    *,
    gain: float = 1.0,
    with_contact: bool = True,
    statistics: BatchStatistics | None = None,
) -> list[Drift]:
    """Drift of every generated sample of K sets; see the module's formulas. Two all-reduces where ranks share a batch.

    Args:
        sets: K of them on one device; those of equal shape are processed side by side.
        field: rule that turns distances into coefficients.
        temperatures: T numbers or [].
        normalization: what is normalised, and by a mean over what.
        gain: factor on the normalised drift.
        with_contact: whether the field reports what its kernel sees.
        statistics: those of the batch that these problems are a part of; None: these problems are the batch.
    """
    members = _equal_in_shape(sets)
    order = [k for indices in members for k in indices]
    counts = [len(indices) for indices in members]
    with full_precision(sets[0].gen.device):
        walks = [walk_over([sets[k] for k in indices], field, len(temperatures), normalization) for indices in members]
        totals = [walk.distances() for walk in walks]
        scales = global_mean(totals, normalization.group)[:, 0] if statistics is None else statistics.scale[order]
        for walk, scale in zip(walks, scales.split_with_sizes(counts), strict=True):
            walk.set_scale(scale)
        squares = [walk.couplings(field, temperatures, with_contact=with_contact) for walk in walks]
        own = global_mean(squares, normalization.group) if statistics is None else statistics.mean_square[order]
        drifts: dict[int, Drift] = {}
        for indices, walk, mean_square in zip(members, walks, own.split_with_sizes(counts), strict=True):
            drifts |= zip(indices, walk.drifts(mean_square, gain), strict=True)
    return [drifts[k] for k in range(len(sets))]


@torch.no_grad()
def batch_statistics(
    parts: Callable[[], Iterable[Iterable[Sequence[Problems]]]],
    field: Field,
    temperatures: Sequence[float | Tensor],
    normalization: Normalization,
) -> BatchStatistics:
    """S and lambda of a batch that is visited a part at a time, and each part a lot of sets at a time.

    All is visited twice, since lambda depends on S. Two all-reduces in all: each rank may have parts of its own number
    and size, of the same K sets.
    """

    def distances(lot: Sequence[Problems], first: int) -> list[tuple[Tensor, Tensor]]:
        return _by_set(lot, lambda sets, order: walk_over(sets, field, 0, normalization).distances())

    def squares(lot: Sequence[Problems], first: int) -> list[tuple[Tensor, Tensor]]:
        def walk_on(sets: Sequence[Problems], order: list[int]) -> tuple[Tensor, Tensor]:
            walk = walk_over(sets, field, len(temperatures), normalization)
            walk.distances()
            walk.set_scale(scale[[first + k for k in order]])
            return walk.couplings(field, temperatures, with_contact=False)

        return _by_set(lot, walk_on)

    scale = _mean_over_parts(parts(), distances, normalization)[:, 0]
    return BatchStatistics(scale, _mean_over_parts(parts(), squares, normalization))


def _mean_over_parts(
    parts: Iterable[Iterable[Sequence[Problems]]],
    sums: Callable[[Sequence[Problems], int], list[tuple[Tensor, Tensor]]],
    normalization: Normalization,
) -> Tensor:
    """Sum over mass of all parts on all ranks, [K, T]; `sums` of a lot, and which of the K its first set is."""
    totals: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        found: list[tuple[Tensor, Tensor]] = []
        for lot in part:
            with full_precision(lot[0].gen.device):
                found += sums(lot, len(found))
        totals = [(a + x, b + y) for (a, b), (x, y) in zip(totals, found, strict=True)] if totals else found
    if not totals:
        raise ValueError("parts must be at least one, got none")
    return global_mean(totals, normalization.group)


def _by_set(
    lot: Sequence[Problems], sums: Callable[[Sequence[Problems], list[int]], tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Sums [1] or [1, T] and masses of each set of a lot; those of equal shape are processed side by side."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for order in _equal_in_shape(lot):
        total, mass = sums([lot[k] for k in order], order)
        found |= zip(
            order,
            zip(total.split_with_sizes([1] * len(order)), mass.split_with_sizes([1] * len(order)), strict=True),
            strict=True,
        )
    return [found[k] for k in range(len(lot))]


def _equal_in_shape(sets: Sequence[Problems]) -> list[list[int]]:
    """Indices of sets that can be processed side by side."""
    members: dict[tuple[object, ...], list[int]] = {}
    for index, problems in enumerate(sets):
        members.setdefault(problems.signature, []).append(index)
    return list(members.values())


class FrozenTargetLoss(torch.autograd.Function):
    """Per-problem loss mean |x/S - sg(x/S + V)|^2 (Eq. 26) with its closed-form gradient -2 V / (G D S)."""

    @staticmethod
    def forward(ctx: FunctionCtx, gen: Tensor, drift: Tensor, unit: Tensor, drift_is_ours: bool) -> Tensor:
        """Loss [B] in the drift's type.

        Args:
            ctx: autograd's.
            gen: [B, G, D], any float type.
            drift: V, [B, G, D].
            unit: S, [B, 1|G, 1].
            drift_is_ours: whether nobody else holds `drift`, so that the gradient may be written over it.
        """
        ctx.save_for_backward(unit)
        # Not among the saved tensors: sets side by side are views of one, which autograd would not let one of them
        # overwrite before the others have been read.
        ctx.drift, ctx.gen_dtype, ctx.drift_is_ours = drift, gen.dtype, drift_is_ours  # type: ignore[attr-defined]
        loss: Tensor = torch.linalg.vector_norm(drift, dim=(1, 2)).square_()
        return loss.div_(drift.shape[1] * drift.shape[2])

    @staticmethod
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        """grad_loss [B] -> gradient [B, G, D] in the samples' type."""
        if torch._C._functorch.is_legacy_batchedtensor(grad_loss):
            raise RuntimeError(
                "the drifting loss takes one gradient at a time, not is_grads_batched=True: ask for them in a loop"
            )
        (unit,) = ctx.saved_tensors  # type: ignore[attr-defined]
        drift, dtype, once = ctx.drift, ctx.gen_dtype, not _graph_is_kept()  # type: ignore[attr-defined]
        if once:
            ctx.drift = None  # type: ignore[attr-defined]
        factor = grad_loss.detach()[:, None, None] * (-2.0 / (drift.shape[1] * drift.shape[2])) / unit  # [B, 1|G, 1]
        overwrite = once and ctx.drift_is_ours and dtype == drift.dtype  # type: ignore[attr-defined]
        gradient = drift if overwrite else torch.empty_like(drift, dtype=dtype)
        torch.mul(drift, factor, out=gradient)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _NoSecondDerivative.apply(gradient, gradient.new_empty(0).requires_grad_())  # type: ignore[no-untyped-call]
        return gradient, None, None, None


def _graph_is_kept() -> bool:
    """Whether autograd may come back to the node that it is in (retain_graph=True); True where it does not tell."""
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return tell is None or bool(tell())


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that refuses to be differentiated: the frozen target has no derivative, and zero would be wrong."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, anchor: Tensor) -> Tensor:
        """Gradient as it is; `anchor` is what makes autograd come back here."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """Refuse."""
        raise RuntimeError(
            "the drifting loss has no second derivative: its gradient is the frozen drift. Penalise the generator's "
            "own outputs instead, or leave create_graph=True away"
        )
