"""Mass of the two sides of a problem, for fields that take `Columns.weight` as mass: weight 2 is two samples, 0 none.

Shapes: B problems, G generated, M references.
"""

import torch
from torch import Tensor

from drifting.fields.field import Columns


def check_mass(name: str, mass: Tensor, reason: str) -> None:
    """Refuse problems without mass; on an accelerator by a device-side assertion, without a host sync.

    Args:
        name: the argument that is to blame.
        mass: [B, ...], the sum of its weights.
        reason: why a field cannot do without.
    """
    message = f"{name} must be > 0 somewhere in every problem: {reason}"
    some = (mass > 0).reshape(len(mass), -1).all(-1)
    if mass.device.type == "cpu":
        if not some.all():
            raise ValueError(f"{message}, got only zeros in problems {(~some).nonzero()[:, 0].tolist()[:5]}")
    else:
        torch._assert_async(some.all(), message)


def side_masses(columns: Columns) -> tuple[Tensor, Tensor]:
    """Mass of the negatives [B, G, 1] ([B, 1, 1] for an independent self block) and of the positives [B, 1, 1].

    A generated sample is no draw from what repels it, so a batch that is its own negatives counts without the sample
    itself: G - 1 of unit weight, the number that `guidance_weight` counts with. Densities are then unbiased, and a
    sample alone with its own kernel does not stop to be repelled.

    Raises:
        ValueError: a side without mass.
    """
    negative, positive = torch.split(columns.weight, [columns.num_negative, columns.num_pos], dim=-1)
    positive_mass = positive.sum(-1)[:, None, None]
    if columns.self_is_gen:
        own, extra = torch.split(negative, [columns.num_self, columns.num_neg], dim=-1)
        others = 1 - torch.eye(columns.num_self, dtype=own.dtype, device=own.device)  # a difference of sums would round
        negative_mass = (own @ others + extra.sum(-1, keepdim=True))[:, :, None]
    else:
        negative_mass = negative.sum(-1)[:, None, None]
    check_mass("gen_weight (or neg_weight)", negative_mass, "no density repels there; a sample does not repel itself")
    check_mass("pos_weight", positive_mass, "no density attracts there")
    return negative_mass, positive_mass
