"""Three walks over the problems of one group: distances, couplings, drift.

Between the walks stand the two normalisers, S and lambda, which a batch shares over all its problems and ranks.
Shapes: B problems, G generated, M references, D features, T temperatures; K sets of problems (features) in the group.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from drifting.distances import distance_of_small, mean_distance_of_samples, pairwise_distance
from drifting.fields import Contact, Coupling, Field, couplings
from drifting.problems import ProblemGroup, Problems, joined, part
from drifting.scales import Extent
from drifting.superposition import Kept, KeptCoefficients, KeptDrifts, KeptForSmall, gram_saves

SMALLEST_SCALE = 1e-3  # of S and of the mean distance: a collapsed batch is not blown up
SMALLEST_DRIFT_MEAN_SQUARE = 1e-8  # of lambda^2: a batch without drift is not blown up
TILES = 3  # [G, M] tiles that a block works with: distances, a coupling and what it is made of


@dataclass(frozen=True, slots=True)
class Normalization:
    """What is divided by S and by lambda, what each is a mean over, and which ranks share a batch."""

    features: bool = True
    drift: bool = True
    feature_extent: Extent = Extent.BATCH
    drift_extent: Extent = Extent.BATCH
    group: ProcessGroup | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift of one set of problems and the statistics that normalised it."""

    drift: Tensor  # [B, G, D]  in scaled coordinates, summed over temperatures
    unit: Tensor  # [B, 1|G, 1]  S: what coordinates were divided by; 1 without feature normalisation
    scale: Tensor  # []  mean pairwise distance of the raw features
    drift_rms: Tensor  # [T]  lambda over the whole batch, per temperature, before normalisation
    contacts: tuple[Contact, ...]  # T of them; empty unless asked for


class GroupWalk(ABC):
    """The walks over one group, in the order `distances`, `couplings`, `drifts`.

    Each is given the statistics, over every group and rank, of what the walk before it returned. `PlainWalk` serves
    every field and device; `drifting.fused` has one for the default field on a GPU.

    Args:
        sets: K sets of one signature.
        normalization: what is normalised, and how.
    """

    # By `couplings`: |V_tau|^2 in scaled coordinates, [B, G, T]; or, where no extent is SAMPLE, means over samples.
    square: Tensor
    contacts: list[list[Contact]]  # by `couplings`: of blocks of problems, at each temperature; empty unless asked for

    def __init__(self, sets: Sequence[Problems], normalization: Normalization) -> None:
        self.group = group = ProblemGroup(sets, TILES)
        self.normalization = normalization
        if not normalization.features:
            self.unit = torch.ones((), dtype=group.dtype, device=group.device).expand(len(group), 1, 1)

    @abstractmethod
    def distances(self) -> tuple[Tensor, Tensor]:
        """First walk; returns sum and mass of each set's mean distance (Eq. 18-21), [K] and [K]."""

    @abstractmethod
    def couplings(
        self, field: Field, temperatures: Sequence[float | Tensor], *, with_contact: bool
    ) -> tuple[Tensor, Tensor]:
        """Second walk; returns sum and count of each set's squared drifts (Eq. 23-25), [K, T] and [K, 1]."""

    @abstractmethod
    def total(self, mean_square: Tensor | None, gain: float) -> Tensor:
        """gain sum_tau V_tau / lambda_tau, [B, G, D], for lambda^2 [B, 1|G, T]; None divides by nothing. Once."""

    def set_scale(self, scale: Tensor) -> None:
        """Take the mean distance of each set, [K]."""
        self.scale = scale = scale.to(self.group.dtype)
        if self.normalization.feature_extent is Extent.BATCH:
            self._set_unit(self.group.spread_over_problems(scale)[:, None, None])

    def _set_unit(self, mean_distance: Tensor) -> None:
        if self.normalization.features:
            self.unit = (mean_distance / self.group.width**0.5).clamp(min=SMALLEST_SCALE)
            self.distance_unit = mean_distance.clamp(min=SMALLEST_SCALE)

    def drifts(self, mean_square: Tensor, gain: float) -> list[Drift]:
        """Third walk, given the mean square of each set's drifts, [K, T]; K drifts."""
        group = self.group
        mean_square = mean_square.to(group.dtype)
        total = self.total(self._normalizing(mean_square), gain)
        contacts = [self._contact_of_sets(parts) for parts in self.contacts if parts]  # T of K
        parts = zip(total.split_with_sizes(group.sizes), self.unit.split_with_sizes(group.sizes), strict=True)
        return [
            Drift(drift, unit, self.scale[k], rms, tuple(contact[k] for contact in contacts))
            for k, ((drift, unit), rms) in enumerate(zip(parts, mean_square.sqrt(), strict=True))
        ]

    def _normalizing(self, mean_square: Tensor) -> Tensor | None:
        """lambda^2, [B, 1|G, T], of the mean squares of sets, [K, T]; None where drifts stay as they are."""
        if not self.normalization.drift:
            return None
        match self.normalization.drift_extent:
            case Extent.BATCH:
                return self.group.spread_over_problems(mean_square)[:, None, :]
            case Extent.PROBLEM:
                return self.square.mean(1, keepdim=True) / self.group.width
            case Extent.SAMPLE:
                return self.square / self.group.width

    def _contact_of_sets(self, blocks: Sequence[Contact]) -> list[Contact]:
        """Contacts of blocks of problems, joined and dealt to the K sets."""
        joined: dict[str, list[Tensor | None]] = {}
        for entry in fields(Contact):
            values = [getattr(block, entry.name) for block in blocks]
            missing = values[0] is None
            joined[entry.name] = (
                [None] * len(self.group.sizes) if missing else [*torch.cat(values).split_with_sizes(self.group.sizes)]
            )
        return [Contact(*parts) for parts in zip(*joined.values(), strict=True)]  # type: ignore[arg-type]


class PlainWalk(GroupWalk):
    """Every field, a coupling at a time; `num_temperatures` T, 0 for the first walk alone."""

    def __init__(self, sets: Sequence[Problems], num_temperatures: int, normalization: Normalization) -> None:
        super().__init__(sets, normalization)
        group, self.gram = self.group, None
        if not group.is_small and gram_saves(group, num_temperatures):
            self.gram = group.empty(len(group), group.num_refs, group.num_refs)
        self.distance = group.empty(len(group), group.num_gen, group.num_refs)

    def distances(self) -> tuple[Tensor, Tensor]:
        """First walk."""
        group = self.group
        row_sums: list[Tensor] = []  # of blocks [b, G]
        sample_scales: list[Tensor] = []
        for rows in group.row_slices():
            distance = part(self.distance, rows)
            if group.is_small:
                row_sums.append(distance_of_small(group, rows, out=distance))
            else:
                block = group.block(rows, find_centre=True)
                gram = None if self.gram is None else torch.bmm(block.refs, block.refs.mT, out=self.gram[rows])
                row_sums.append(pairwise_distance(block, gram, out=distance))
            if self.normalization.feature_extent is Extent.SAMPLE:
                sample_scales.append(mean_distance_of_samples(distance, group.columns(rows)))
        problem_sum, problem_mass = joined(row_sums).sum(1), group.weight.sum(1) * group.num_gen  # [B]
        match self.normalization.feature_extent:
            case Extent.PROBLEM:
                self._set_unit((problem_sum / problem_mass)[:, None, None])
            case Extent.SAMPLE:
                self._set_unit(joined(sample_scales)[:, :, None])
        return group.sum_over_sets(problem_sum), group.sum_over_sets(problem_mass)

    def couplings(
        self, field: Field, temperatures: Sequence[float | Tensor], *, with_contact: bool
    ) -> tuple[Tensor, Tensor]:
        """Second walk."""
        group = self.group
        squares: list[Tensor] = []  # of blocks [b, G, T]
        self.contacts = [[] for _ in temperatures]
        for rows in group.row_slices():
            distance, columns = self.normalized_distance(rows), group.columns(rows)
            for k, coupling in enumerate(couplings(field, distance, columns, temperatures, with_contact=with_contact)):
                if rows.start == k == 0:
                    self.kept = self._choose_kept(coupling, len(temperatures))
                self.kept.add(rows, k, coupling)
                self.contacts[k] += [] if coupling.contact is None else [coupling.contact]
            squares.append(self.kept.squares(rows))
        del self.distance, self.gram
        self.square = joined(squares).div_(self.unit.square())  # |V_tau|^2 in scaled coordinates, [B, G, T]
        return group.sum_over_sets(self.square.sum(1)), group.counts(group.num_gen * group.width)[:, None]

    def total(self, mean_square: Tensor | None, gain: float) -> Tensor:
        """What was kept, summed."""
        weight = gain / self.unit.expand(-1, -1, self.square.shape[-1])  # [B, 1|G, T]
        if mean_square is not None:
            weight = weight / mean_square.clamp(min=SMALLEST_DRIFT_MEAN_SQUARE).sqrt()
        return self.kept.total(weight)

    def normalized_distance(self, rows: slice) -> Tensor:
        """Distances of some problems in the unit of the temperatures, [b, G, M]; to be asked for once."""
        distance = part(self.distance, rows)
        return distance.div_(part(self.distance_unit, rows)) if self.normalization.features else distance

    def _choose_kept(self, coupling: Coupling, num_temperatures: int) -> Kept:
        if self.group.is_small:
            return KeptForSmall(self.group, num_temperatures)
        if self.gram is None or not (self.group.self_is_gen or coupling.balanced):
            return KeptDrifts(self.group, num_temperatures)
        return KeptCoefficients(self.group, num_temperatures, self.gram)
