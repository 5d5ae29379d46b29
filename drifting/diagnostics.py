"""What tells convergence, since the loss value cannot: with normalised drifts it is nearly constant by construction.

Each temperature contributes a mean square of one, so T temperatures give a loss between T (uncorrelated drifts) and T^2
(identical ones) whether the generator is untrained or perfect. Watch `DriftTerms.drift_rms` at the largest temperature
(at small ones the drift is mostly the noise of which neighbours were drawn) and the figures below.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields import Contact
from drifting.problems import Problems
from drifting.walks import Drift


@dataclass(frozen=True, slots=True)
class DriftDiagnostics:
    """Figures of this process's batch; all detached, on the samples' device, no host sync."""

    positive_mass: Tensor  # [T]  mean summed affinity of a generated sample to positives: 0 means the kernel is blind
    negative_mass: Tensor  # [T]  the same to generated samples and extra negatives
    floor_share: Tensor  # [T]  share of affinities on the floor: near 1 means the floor moves everything
    plan_error: Tensor  # [T]  mean over problems of a transport plan's largest column error; 0 without a plan
    sweeps: Tensor  # [T]  mean Sinkhorn sweeps of a problem; 0 without a plan
    gen_spread: Tensor  # []  RMS distance of generated samples from their problem's mean, per feature
    pos_spread: Tensor  # []  the same of positives; gen_spread far below it is a collapse


def within_problem_spread(samples: Tensor) -> Tensor:
    """RMS over problems, samples and features of the distance from the problem's mean; [B, K, D] -> []."""
    x = samples.to(torch.promote_types(samples.dtype, torch.float32))
    return x.var(1, correction=0).mean().sqrt()


@torch.no_grad()
def diagnose(problems: Problems, drift: Drift) -> DriftDiagnostics:
    """Collect the figures of one computed drift."""
    return DriftDiagnostics(
        **{name: _means(drift, name) for name in Contact.__dataclass_fields__},
        gen_spread=within_problem_spread(problems.gen),
        pos_spread=within_problem_spread(problems.blocks[-1]),
    )


def _means(drift: Drift, name: str) -> Tensor:
    """Mean over problems of one entry of the contacts, [T]."""
    values = [getattr(contact, name) for contact in drift.contacts]
    return torch.stack([drift.scale.new_zeros(()) if v is None else v.to(drift.scale.dtype).mean() for v in values])
