"""Drifting models: one-step generation trained by a drifting field (arXiv 2602.04770).

loss = DriftLoss()(gen=model(z), pos=real)      gen [B, G, D], pos [B, P, D]
"""

from drifting.features import FeatureDriftLoss
from drifting.fields import MeanShift, Sinkhorn, row_affinity, two_sided_affinity, unnormalized_affinity
from drifting.guidance import GuidanceRange, guidance_weight
from drifting.kernels import gaussian, laplacian
from drifting.loss import DriftLoss, DriftTerms, drift_field
from drifting.queue import SampleQueue

__version__ = "0.1.0"

__all__ = [
    "DriftLoss",
    "DriftTerms",
    "FeatureDriftLoss",
    "GuidanceRange",
    "MeanShift",
    "SampleQueue",
    "Sinkhorn",
    "drift_field",
    "gaussian",
    "guidance_weight",
    "laplacian",
    "row_affinity",
    "two_sided_affinity",
    "unnormalized_affinity",
]
