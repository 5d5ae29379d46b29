"""Drifting fields: rules that turn distances into signed coefficients."""

from drifting.fields.affinities import row_affinity, two_sided_affinity, unnormalized_affinity
from drifting.fields.divergence import (
    DensityRatioWeight,
    chi_squared_data_gen,
    chi_squared_gen_data,
    kl_data_gen,
    kl_gen_data,
)
from drifting.fields.field import Columns, Contact, Coupling, Field, couplings
from drifting.fields.kernel_gradient import KernelGradient
from drifting.fields.mean_shift import MeanShift, WeightPlacement
from drifting.fields.mmd import Mmd
from drifting.fields.sharp import Sharp
from drifting.fields.sinkhorn import Sinkhorn, distance_cost, half_squared_distance
from drifting.fields.velocity_guidance import VelocityGuidance

__all__ = [
    "Columns",
    "Contact",
    "Coupling",
    "DensityRatioWeight",
    "Field",
    "KernelGradient",
    "MeanShift",
    "Mmd",
    "Sharp",
    "Sinkhorn",
    "VelocityGuidance",
    "WeightPlacement",
    "chi_squared_data_gen",
    "chi_squared_gen_data",
    "couplings",
    "distance_cost",
    "half_squared_distance",
    "kl_data_gen",
    "kl_gen_data",
    "row_affinity",
    "two_sided_affinity",
    "unnormalized_affinity",
]
