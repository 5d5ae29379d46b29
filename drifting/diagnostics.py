"""What tells convergence, since the loss value cannot: with normalised drifts it is nearly constant by construction.

Each temperature contributes a mean square of one, so T temperatures give a loss between T (uncorrelated drifts) and T^2
(identical ones) whether the generator is untrained or perfect. Watch `DriftTerms.drift_rms` at the largest temperature
(at small ones the drift is mostly the noise of which neighbours were drawn) and the figures below.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.engine import Drift, References


@dataclass(frozen=True, slots=True)
class DriftDiagnostics:
    """Figures of this process's batch; all detached, on the samples' device, no host sync."""

    positive_mass: Tensor  # [T]  mean summed affinity of a generated sample to positives: 0 means the kernel is blind
    negative_mass: Tensor  # [T]  the same to generated samples and extra negatives
    floor_share: Tensor  # [T]  share of affinities on the floor: near 1 means the floor moves everything
    gen_spread: Tensor  # []  RMS distance of generated samples from their problem's mean, per feature
    pos_spread: Tensor  # []  the same of positives; gen_spread far below it is a collapse


def within_problem_spread(samples: Tensor) -> Tensor:
    """RMS over problems, samples and features of the distance from the problem's mean; [B, K, D] -> []."""
    return (samples - samples.mean(1, keepdim=True)).square().mean().sqrt()


@torch.no_grad()
def diagnose(references: References, drift: Drift) -> DriftDiagnostics:
    """Collect the figures of one computed drift."""
    return DriftDiagnostics(
        positive_mass=torch.stack([contact.positive_mass for contact in drift.contacts]),
        negative_mass=torch.stack([contact.negative_mass for contact in drift.contacts]),
        floor_share=torch.stack([contact.floor_share for contact in drift.contacts]),
        gen_spread=within_problem_spread(references.gen),
        pos_spread=within_problem_spread(references.blocks[-1]),
    )
