"""The formulas of the paper and of the authors' code, written once more as plainly as possible, in float64.

No shared code with the library: the tests compare the two. Shapes as in drifting.engine.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def plain_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| by subtraction; [B, G, D], [B, M, D] -> [B, G, M]."""
    return (x[:, :, None, :] - y[:, None, :, :]).square().sum(-1).sqrt()


def algorithm_2(x: Tensor, y_pos: Tensor, y_neg: Tensor, temperature: float) -> Tensor:
    """compute_V of the paper's Alg. 2; [G, D], [P, D], [N, D] -> [G, D]. Self pairs are masked where `y_neg is x`."""
    dist_pos = plain_distance(x[None], y_pos[None])[0]
    dist_neg = plain_distance(x[None], y_neg[None])[0]
    if y_neg is x:
        dist_neg = dist_neg + 1e6 * torch.eye(len(x), dtype=x.dtype)
    logit = torch.cat([-dist_pos / temperature, -dist_neg / temperature], dim=1)
    affinity = (torch.softmax(logit, dim=-1) * torch.softmax(logit, dim=-2)).sqrt()
    a_pos, a_neg = affinity[:, : len(y_pos)], affinity[:, len(y_pos) :]
    w_pos = a_pos * a_neg.sum(dim=1, keepdim=True)
    w_neg = a_neg * a_pos.sum(dim=1, keepdim=True)
    return w_pos @ y_pos - w_neg @ y_neg


@dataclass
class OfficialLoss:
    loss: Tensor  # [B]
    drift: Tensor  # [B, G, D]
    unit: Tensor  # []
    scale: Tensor  # []
    mean_square: list[Tensor]  # T of []


def official_drift_loss(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor,
    gen_weight: Tensor,
    pos_weight: Tensor,
    neg_weight: Tensor,
    temperatures: tuple[float, ...],
    *,
    normalize_features: bool = True,
    normalize_drift: bool = True,
    floor: float = 1e-3,
) -> OfficialLoss:
    """The released objective with both normalisations; [B, G, D], [B, P, D], [B, N, D] with N = 0 for none.

    Differences of coordinates instead of dot products, so an exact reference for the library's arithmetic too.
    """
    num_gen, num_negative, width = gen.shape[1], gen.shape[1] + neg.shape[1], gen.shape[2]
    targets = torch.cat([gen, neg, pos], dim=1)
    weight = torch.cat([gen_weight, neg_weight, pos_weight], dim=1)[:, None, :].expand(-1, num_gen, -1)
    distance = plain_distance(gen, targets).clamp(min=1e-4)
    scale = (distance * weight).mean() / weight.mean()
    unit = torch.clamp(scale / math.sqrt(width), min=1e-3) if normalize_features else torch.ones_like(scale)
    if normalize_features:
        distance = distance / scale.clamp(min=1e-3)
    distance = distance.clone()
    for i in range(num_gen):
        distance[:, i, i] += 100.0

    drift = torch.zeros_like(gen)
    mean_square = []
    for temperature in temperatures:
        logit = -distance / temperature
        affinity = (logit.softmax(-1) * logit.softmax(-2)).clamp(min=floor**2).sqrt() * weight
        a_neg, a_pos = affinity[..., :num_negative], affinity[..., num_negative:]
        coefficient = torch.cat([-a_neg * a_pos.sum(-1, keepdim=True), a_pos * a_neg.sum(-1, keepdim=True)], dim=-1)
        force = (coefficient[..., None] * (targets[:, None] - gen[:, :, None])).sum(2) / unit
        mean_square.append(force.square().mean())
        drift += force / mean_square[-1].clamp(min=1e-8).sqrt() if normalize_drift else force
    return OfficialLoss(drift.square().mean(dim=(1, 2)), drift, unit, scale, mean_square)
