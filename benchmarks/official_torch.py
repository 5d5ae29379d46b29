"""The authors' objective as the formula says it, in PyTorch: what one writes without thinking about speed.

One target matrix, one distance matrix, autograd for the one step that has a gradient; nothing here is slowed down.
Shapes: B problems, G generated, P positives, N extra negatives, M = G + N + P targets, D features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURES = (0.02, 0.05, 0.2)


def official_loss(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    neg_weight: Tensor | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Tensor:
    """Mean loss [] of gen [B, G, D], pos [B, P, D], neg [B, N, D] with weights [B, N]; float32 or float64."""
    num_gen, width = gen.shape[1:]
    with torch.no_grad():
        targets = torch.cat([gen, pos] if neg is None else [gen, neg, pos], dim=1)  # [B, M, D]
        one = gen.new_ones(())
        blocks = [one.expand(gen.shape[:2]), one.expand(pos.shape[:2])]
        if neg is not None:
            blocks.insert(1, neg_weight)
        weight = torch.cat(blocks, dim=1)[:, None, :]  # [B, 1, M]
        num_negative = targets.shape[1] - pos.shape[1]

        squared = gen.square().sum(-1)[:, :, None] + targets.square().sum(-1)[:, None, :] - 2 * gen @ targets.mT
        distance = squared.clamp(min=1e-8).sqrt()  # [B, G, M]
        scale = (distance * weight).mean() / weight.mean()
        unit = (scale / width**0.5).clamp(min=1e-3)
        scaled_gen, scaled_targets = gen / unit, targets / unit
        own = F.pad(100 * torch.eye(num_gen, dtype=gen.dtype, device=gen.device), (0, targets.shape[1] - num_gen))
        distance = distance / scale.clamp(min=1e-3) + own

        drift = torch.zeros_like(gen)
        for temperature in temperatures:
            logits = -distance / temperature
            affinity = (logits.softmax(-1) * logits.softmax(-2)).clamp(min=1e-6).sqrt() * weight
            negative, positive = affinity[..., :num_negative], affinity[..., num_negative:]
            coefficients = torch.cat(
                [-negative * positive.sum(-1, keepdim=True), positive * negative.sum(-1, keepdim=True)], dim=-1
            )
            force = coefficients @ scaled_targets - coefficients.sum(-1, keepdim=True) * scaled_gen
            drift = drift + force / force.square().mean().clamp(min=1e-8).sqrt()
        goal = scaled_gen + drift
    return (gen / unit - goal).square().mean()
