"""Which problems the fused walk serves; asked without importing Triton, which comes with torch's CUDA builds alone."""

import os
from importlib.util import find_spec

import torch

from drifting.fields import Field, MeanShift
from drifting.problems import Problems
from drifting.scales import Extent
from drifting.walks import Normalization

MOST_TILE = 2**15  # entries of a padded [G, M] tile, which one program holds: 64 registers of each of 512 threads


def fits(problems: Problems, field: Field, normalization: Normalization) -> bool:
    """Whether `FusedWalk` serves such problems."""
    columns = problems.columns
    return (
        problems.gen.device.type == "cuda"
        and problems.dtype == torch.float32
        and type(field) is MeanShift
        and field.is_default_rule(columns)
        and (columns.self_is_gen or field.attraction == field.repulsion)
        and Extent.SAMPLE not in (normalization.feature_extent, normalization.drift_extent)
        and _power_of_2(problems.gen.shape[1]) * _power_of_2(columns.weight.shape[1]) <= MOST_TILE
        and os.environ.get("DRIFTING_NATIVE") != "0"
        and find_spec("triton") is not None  # not with every build of torch
    )


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()
