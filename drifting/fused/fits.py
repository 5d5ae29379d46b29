"""Which problems the fused walk serves; asked without importing Triton, which comes with torch's CUDA builds alone."""

import functools
import os
import subprocess
import warnings
from contextlib import nullcontext
from importlib.util import find_spec

import torch

from drifting.fields import Field, MeanShift
from drifting.problems import Problems
from drifting.scales import Extent
from drifting.walks import Normalization

MOST_TILE = 2**15  # entries of a padded [G, M] tile, which one program holds: 64 registers of each of 512 threads
MOST_ROWS = 2**11  # samples of a problem that one program centres


def fits(problems: Problems, field: Field, normalization: Normalization) -> bool:
    """Whether `FusedWalk` serves such problems."""
    columns, num_gen = problems.columns, problems.gen.shape[1]
    num_refs = columns.weight.shape[1]
    return (
        problems.gen.device.type == "cuda"
        and problems.dtype == torch.float32
        and type(field) is MeanShift
        and field.is_default_rule(columns)
        and (columns.self_is_gen or field.attraction == field.repulsion)
        and Extent.SAMPLE not in (normalization.feature_extent, normalization.drift_extent)
        and power_of_2(num_gen) * power_of_2(num_refs) <= MOST_TILE
        and num_refs + (0 if columns.self_is_gen else num_gen) <= MOST_ROWS
        and os.environ.get("DRIFTING_NATIVE") != "0"
        and kernels_run(problems.gen.device)
    )


@functools.cache
def kernels_run(device: torch.device) -> bool:
    """Whether Triton is there and can build a kernel for the device, which takes a C compiler and Python's headers."""
    if find_spec("triton") is None:
        return False
    from triton import TritonError

    from drifting.fused import kernels

    value, bounds = torch.zeros(1, 1, device=device), torch.tensor([0, 1], device=device)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernels.sums_of_sets(value, bounds)
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise  # of the device, or of what ran before
        warnings.warn(
            f"drifting: Triton could not build a kernel for {device}; the plain PyTorch path gives the same numbers, "
            f"slower. DRIFTING_NATIVE=0 silences this. {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def power_of_2(count: int) -> int:
    """The next one."""
    return 1 << (count - 1).bit_length()
