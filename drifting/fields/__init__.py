"""Drifting fields: rules that turn distances into signed coefficients."""

from drifting.fields.field import Columns, Contact, Coupling, Field
from drifting.fields.mean_shift import MeanShift, row_affinity, two_sided_affinity, unnormalized_affinity
from drifting.fields.sinkhorn import Sinkhorn

__all__ = [
    "Columns",
    "Contact",
    "Coupling",
    "Field",
    "MeanShift",
    "Sinkhorn",
    "row_affinity",
    "two_sided_affinity",
    "unnormalized_affinity",
]
