"""The walks of the default field on a GPU: a few kernels in the place of a hundred, which take longer to start than to
run.

Shapes: B problems, G generated, M references, R rows of a block (M, and G more where generated samples are not among
the references), D features, T temperatures, K sets; b problems of a block.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from drifting.constants import bounds_of_sets
from drifting.distances import SMALLEST_SQUARED_DISTANCE
from drifting.fields import Contact, Field, MeanShift
from drifting.fused import kernels
from drifting.problems import Problems, joined, part
from drifting.scales import Extent
from drifting.superposition import gram_saves
from drifting.walks import SMALLEST_DRIFT_MEAN_SQUARE, GroupWalk, Normalization


class FusedWalk(GroupWalk):
    """Distances are never stored, couplings of all temperatures come from one kernel.

    What is kept between the walks is chosen as in `superposition`: the coefficients, and the Gram matrix of the
    references for their norms; or the drift of every temperature. `num_temperatures` T, 0 for the first walk alone.
    """

    def __init__(self, sets: Sequence[Problems], num_temperatures: int, normalization: Normalization) -> None:
        super().__init__(sets, normalization)
        group, self.first = self.group, sets[0].columns
        self.weight = group.weight if self.first.is_weighted else None  # of all sets alike, by their signature
        num_gen, num_refs = group.num_gen, group.num_refs
        self.keeps_coefficients = num_temperatures > 0 and gram_saves(group, num_temperatures)
        self.gram = group.empty(len(group), num_refs, num_refs) if self.keeps_coefficients else None
        # Inner products of generated samples and references: the first rows of the Gram matrix, where they are in it.
        within = self.first.self_is_gen and self.gram is not None
        self._inner = None if within else group.empty(len(group), num_gen, num_refs)
        self._squares: dict[int, Tensor] = {}  # squared norms [C, b, R] of the block that begins at a row
        rows = num_refs + (0 if self.first.self_is_gen else num_gen)
        self._scratch = group.empty(group.block_size, rows, group.width)
        self._filled: slice | None = None  # what lies in the scratch memory

    def distances(self) -> tuple[Tensor, Tensor]:
        """First walk."""
        sums = self.group.empty(len(self.group), 2)
        for rows in self.group.row_slices():
            refs, gen = self._centred(rows)
            if self.gram is not None:
                torch.bmm(refs, refs.mT, out=part(self.gram, rows))
            if self._inner is not None:
                torch.bmm(gen, refs.mT, out=part(self._inner, rows))
            kernels.distance_sums(self._pairs(rows), out=part(sums, rows))
        if self.normalization.feature_extent is Extent.PROBLEM:
            self._set_unit((sums[:, 0] / sums[:, 1])[:, None, None])
        total, mass = self._sums_of_sets(sums).unbind(1)
        return total, mass

    def couplings(
        self, field: Field, temperatures: Sequence[float | Tensor], *, with_contact: bool
    ) -> tuple[Tensor, Tensor]:
        """Second walk."""
        assert isinstance(field, MeanShift)  # by `fits`
        group, count, taus = self.group, len(temperatures), _stacked(temperatures, self.group.device)
        masked = field.mask_self and self.first.self_is_gen
        rule = kernels.Rule(masked, field.floor, field.attraction, field.repulsion)
        kept_width = group.width if self.gram is None else group.num_refs
        self.kept = group.empty(len(group), count, group.num_gen, kept_width)  # drifts or coefficients
        squares: list[Tensor] = []  # of blocks [b, T]
        self.contacts = [[] for _ in temperatures]
        for rows in reversed(group.row_slices()):  # the last block is at hand
            size, kept = rows.stop - rows.start, part(self.kept, rows)
            found = kept if self.gram is not None else group.empty(size, count, group.num_gen, group.num_refs)
            contact = group.empty(count, size, 3) if with_contact else None
            unit = part(self.distance_unit, rows)[:, 0, 0] if self.normalization.features else None
            kernels.mean_shift(self._pairs(rows), unit, taus, rule, out=found, contact=contact)
            own = found.flatten(1, 2)  # [b, T G, M]
            if self.gram is not None:
                other = torch.bmm(own, part(self.gram, rows))  # |c Y|^2 = c (Y Y^T) c^T
            else:
                other = own = torch.bmm(own, self._centred(rows)[0], out=kept.flatten(1, 2))
            products = kernels.row_products(own.view(size * count, -1), other.view(size * count, -1))
            squares.append(products.clamp_(min=0).view(size, count))  # rounding may fall below, with a Gram matrix
            if contact is not None:
                self._take(contact, has_floor=field.floor > 0)
        self.gram = self._inner = None
        square = joined(squares[::-1]) / self.unit[:, 0].square()  # [B, T]
        self.square = (square / group.num_gen)[:, None]
        return self._sums_of_sets(square), group.counts(group.num_gen * group.width)[:, None]

    def total(self, mean_square: Tensor | None, gain: float) -> Tensor:
        """Coefficients, summed and applied to the references once; or drifts, summed."""
        group, kept = self.group, self.kept
        del self.kept
        total = group.empty(len(group), *kept.shape[2:])
        own = None if mean_square is None else mean_square[:, 0]
        scaling = {"gain": gain, "smallest": SMALLEST_DRIFT_MEAN_SQUARE}
        kernels.superpose(kept.flatten(2), self.unit[:, 0, 0], own, out=total.flatten(1), **scaling)
        if not self.keeps_coefficients:
            return total
        drift = group.empty(len(group), group.num_gen, group.width)
        for rows in group.row_slices():
            torch.bmm(part(total, rows), self._centred(rows)[0], out=part(drift, rows))
        return drift

    def _centred(self, rows: slice) -> tuple[Tensor, Tensor]:
        """References [b, M, D] and generated samples [b, G, D] of a block, about the mean of its references."""
        group, split = self.group, self.group.num_refs
        block = self._scratch[: rows.stop - rows.start]
        if self._filled != rows:
            square = []
            for here, problems, own in group.spans(rows):
                first, *neg, pos = (part(each, own) for each in problems.blocks)
                gen = None if self.first.self_is_gen else part(problems.gen, own)
                square.append(kernels.centred(first, neg[0] if neg else None, pos, gen, block[here]))
            self._squares.setdefault(rows.start, square[0] if len(square) == 1 else _side_by_side(square))
            self._filled = rows
        return block[:, :split], block[:, : group.num_gen] if self.first.self_is_gen else block[:, split:]

    def _pairs(self, rows: slice) -> kernels.Pairs:
        inner = self.gram if self._inner is None else self._inner
        assert inner is not None  # one of the two until the second walk is over
        return kernels.Pairs(
            inner=part(inner, rows),
            square=self._squares[rows.start],
            weight=None if self.weight is None else part(self.weight, rows),
            num_gen=self.group.num_gen,
            num_refs=self.group.num_refs,
            num_negative=self.first.num_negative,
            self_is_gen=self.first.self_is_gen,
            smallest=SMALLEST_SQUARED_DISTANCE,
        )

    def _sums_of_sets(self, values: Tensor) -> Tensor:
        """Values of problems [B, T] -> sums of sets [K, T]."""
        sizes = tuple(self.group.sizes)
        if len(sizes) == 1:
            return values.sum(0, keepdim=True)
        return kernels.sums_of_sets(values, bounds_of_sets(sizes, self.group.device))

    def _take(self, contact: Tensor, *, has_floor: bool) -> None:
        """Contacts of a block, [T, b, 3]."""
        for found, values in zip(self.contacts, contact, strict=True):
            positive, negative, on_floor = values.unbind(-1)
            found.insert(0, Contact(positive, negative, on_floor if has_floor else None))


def _stacked(temperatures: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """[T], without a copy from the host: schedules change them at every step."""
    stacked = torch.empty(len(temperatures), dtype=torch.float32, device=device)
    for own, temperature in zip(stacked.unbind(), temperatures, strict=True):
        own.copy_(temperature) if isinstance(temperature, Tensor) else own.fill_(temperature)
    return stacked


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Squared norms of several sets, [C, b, R] each, the number of parts C of the feature axis its own."""
    most = max(len(each) for each in parts)
    return torch.cat([F.pad(each, (0, 0, 0, 0, 0, most - len(each))) for each in parts], dim=1)
