"""Where NaN or infinity came from: feature, temperature and rank, the same message on every rank.

    with naming_features(lambda: [drift_loss.terms(**batch)], drift_loss.loss.temperatures):
        grad_norm = optimizer_step(...)          # raises NonFiniteError on every rank at the same step

Nothing is added to a step that is finite. After a failure the terms are computed, once more if need be, and ranks
exchange a small tensor for each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from drifting.loss import DriftTerms
from drifting.training.drift_figures import temperature_names
from drifting.training.errors import NonFiniteError

MAX_LISTED = 4
GENERATED, POSITIVE, LOSS, TEMPERATURES = 0, 1, 2, 3  # columns of the flags; temperatures are those from the fourth on


@contextmanager
def naming_features(
    terms: Callable[[], Iterable[Mapping[str, DriftTerms]]],
    temperatures: Sequence[object],
    group: ProcessGroup | None = None,
) -> Iterator[None]:
    """Add `nonfinite_report` to a NonFiniteError from inside, which every rank of `group` must raise at once.

    Args:
        terms: gives those of the step, of one part of the batch after another; called after a failure only, without
            gradients. Every rank must have as many parts.
        temperatures: of the loss.
        group: of ranks; None: the default group.
    """
    try:
        yield
    except NonFiniteError as error:
        with torch.no_grad():
            reports = (nonfinite_report(part, temperatures, group) for part in terms())
            report = next(filter(None, reports), "")
        raise NonFiniteError(f"{error} {report}" if report else str(error)) from error


@torch.no_grad()
def nonfinite_report(
    terms: Mapping[str, DriftTerms], temperatures: Sequence[object], group: ProcessGroup | None = None
) -> str:
    """What is not finite in the terms of any rank, and on which rank it is first; "" where all is finite.

    S and lambda are means over all ranks, so one bad sample makes every rank's loss NaN. The spreads of generated and
    positive features are each rank's own: they tell the rank. Every rank of `group` (None: the default group) must call
    this; all get the same text. One all-reduce of K (3 + T) numbers for K features and T temperatures.
    """
    flags = torch.stack([_flags(term) for term in terms.values()])  # [K, 3 + T]
    together = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if together else (0, 1)
    first = flags.to(torch.int32) * (ranks - rank)  # the largest is of the lowest rank
    if together:
        dist.all_reduce(first, dist.ReduceOp.MAX, group=group)
    names = temperature_names(temperatures)
    lines = [_line(feature, row, names, ranks) for feature, row in zip(terms, first.tolist(), strict=True) if any(row)]
    if not lines:
        return ""
    more = f"; and {len(lines) - MAX_LISTED} more of {len(terms)} features" if len(lines) > MAX_LISTED else ""
    return f"Not finite: {'; '.join(lines[:MAX_LISTED])}{more}."


def _flags(term: DriftTerms) -> Tensor:
    """[3 + T] bool of this rank, True where a figure of one feature is NaN or infinite."""
    spreads = torch.stack([term.diagnostics.gen_spread, term.diagnostics.pos_spread])
    loss = term.loss.detach().isfinite().all()[None]
    return ~torch.cat([spreads.isfinite(), loss, term.drift_rms.isfinite()])


def _line(feature: str, row: list[int], names: Sequence[str], ranks: int) -> str:
    """One feature; an entry e > 0 of the row means rank `ranks` - e and perhaps later ones."""
    taus = [name for name, entry in zip(names, row[TEMPERATURES:], strict=True) if entry]
    which = "all temperatures" if len(taus) == len(names) else f"temperature {', '.join(taus)}"
    where = [
        f"{samples} features on rank {ranks - row[column]}"
        for column, samples in ((GENERATED, "generated"), (POSITIVE, "positive"))
        if row[column]
    ]
    if where:
        return f"feature {feature} ({which if taus else 'loss'}), from {' and '.join(where)}"
    if not taus:
        return f"feature {feature}, the loss on rank {ranks - row[LOSS]}"
    return f"feature {feature} ({which}), though generated and positive features are finite on every rank: " + (
        "extra negatives, or an overflow"
    )
