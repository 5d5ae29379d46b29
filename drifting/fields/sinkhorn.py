"""Sinkhorn field: transport plan to the positives minus transport plan to an independent generated batch.

    V_i = sum_j P_ij (y_j - x_i) - sum_k Q_ik (x'_k - x_i)      P: gen -> positives, Q: gen -> negatives

P and Q are entropic optimal transport plans with rows scaled to sum to one, found in the log domain. With the cost
|x - y|^2 / 2 this is minus the gradient of the Sinkhorn divergence, debiased by a second batch (W-Flow, arXiv
2605.11755). The generated batch itself cannot serve as x': at low temperature its plan to itself is the identity, and
nothing repels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields.field import Columns, Contact, Coupling


def half_squared_distance(distance: Tensor) -> Tensor:
    """Cost |x - y|^2 / 2: its gradient is the displacement, so plans move samples along straight lines."""
    return 0.5 * distance.square()


def transport_plan(cost: Tensor, weight: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """Entropic plan between G equal masses and M masses proportional to `weight`, rows scaled to sum to one.

    Args:
        cost: [B, G, M].
        weight: [B, M], non-negative, some of each row positive; a column of weight 0 receives nothing.
        temperature: entropic regularisation, in the unit of `cost`.
        iterations: sweeps; each fits the columns, then the rows.

    Returns:
        [B, G, M]; rows are exact, columns as exact as `iterations` make them.
    """
    log_kernel = cost * (-1.0 / temperature)
    # Masses per generated sample: rows have mass 1, columns share the total mass G by weight.
    log_column_mass = (weight * (cost.shape[1] / weight.sum(-1, keepdim=True))).log()[:, None, :]
    log_row = torch.zeros_like(cost[..., :1])
    log_column = torch.zeros_like(log_column_mass)
    for _ in range(iterations):
        log_column = log_column_mass - (log_kernel + log_row).logsumexp(dim=-2, keepdim=True)
        log_row = -(log_kernel + log_column).logsumexp(dim=-1, keepdim=True)
    # The last row fit once more, as a softmax: costs of 1e4 temperatures would leave rounding in the row sums.
    return (log_kernel + log_column).softmax(dim=-1)


@dataclass(frozen=True)
class Sinkhorn:
    """Sinkhorn field; needs `self_ref`, an independent second generated batch.

    Give as many positives as the second batch has samples: both plans then err alike, and cancel where generated and
    real samples agree. With twice as many positives trained samples spread 5 % too wide (handwritten digits).

    Extra negatives guide. A transport plan to them would carry every sample off by the distance between the two
    distributions, wherever it stands; instead a sample climbs the probability that it is a positive and not an extra
    negative, by kernel density: it moves only where the two meet.

        V_i += m (mean of positives near x_i - mean of everything near x_i) = m tau_g grad log p(positive | x_i)

    m is the mass of extra negatives over that of the second batch: alpha - 1 by `guidance_weight`, 0 without guidance.

    Args:
        iterations: Sinkhorn sweeps per plan.
        cost: distance -> cost; in units where the mean distance is 1 when features are normalised.
        guidance_temperature: tau_g of the density's kernel exp(-cost / tau_g).
    """

    iterations: int = 20
    cost: Callable[[Tensor], Tensor] = half_squared_distance
    guidance_temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"Sinkhorn: iterations must be >= 1, got {self.iterations}")
        if not 0 < self.guidance_temperature < float("inf"):
            raise ValueError(f"Sinkhorn: guidance_temperature must be finite and > 0, got {self.guidance_temperature}")

    def __call__(self, distance: Tensor, columns: Columns, *, temperature: float) -> Coupling:
        """Coupling of distances [B, G, M]; see the formulas of module and class."""
        if columns.self_is_gen:
            raise ValueError(
                "Sinkhorn needs self_ref [B, G', D], an independent second generated batch; got none "
                "(at low temperature the plan of a batch to itself is the identity, and nothing repels)"
            )
        split = [columns.num_self, columns.num_neg, columns.num_pos]
        self_weight, neg_weight, pos_weight = torch.split(columns.weight, split, dim=-1)
        self_cost, neg_cost, pos_cost = torch.split(self.cost(distance), split, dim=-1)
        _check_mass("gen_weight", self_weight)
        _check_mass("pos_weight", pos_weight)
        push = transport_plan(self_cost, self_weight, temperature=temperature, iterations=self.iterations)
        pull = transport_plan(pos_cost, pos_weight, temperature=temperature, iterations=self.iterations)
        blocks = [-push, pull]
        if columns.num_neg:
            strength = neg_weight.sum(-1) / self_weight.sum(-1)  # [B]
            away, towards = density_guidance(
                neg_cost, neg_weight, pos_cost, pos_weight, temperature=self.guidance_temperature
            )
            strength = strength[:, None, None]
            blocks = [-push, strength * away, pull + strength * towards]
        contact = Contact(pull.sum(-1).mean(), push.sum(-1).mean(), floor_share=distance.new_zeros(()))
        return Coupling(torch.cat(blocks, dim=-1), contact)


def density_guidance(
    neg_cost: Tensor, neg_weight: Tensor, pos_cost: Tensor, pos_weight: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Coefficients of tau grad log p(positive | x), by kernel densities exp(-cost / tau) of equal prior.

    Args:
        neg_cost: [B, G, N].
        neg_weight: [B, N]; a problem without any has no guidance.
        pos_cost: [B, G, P].
        pos_weight: [B, P].
        temperature: tau.

    Returns:
        Of extra negatives [B, G, N] and of positives [B, G, P]; together every row sums to zero, and is zero where a
        sample sees positives alone.
    """
    tiny = torch.finfo(neg_cost.dtype).tiny
    densities = [
        cost * (-1.0 / temperature) + (weight / weight.sum(-1, keepdim=True).clamp(min=tiny)).log()[:, None, :]
        for cost, weight in ((neg_cost, neg_weight), (pos_cost, pos_weight))
    ]
    share = torch.cat(densities, dim=-1).softmax(dim=-1)
    away, towards = torch.split(share, [neg_cost.shape[-1], pos_cost.shape[-1]], dim=-1)
    return -away, densities[1].softmax(dim=-1) - towards


def _check_mass(name: str, weight: Tensor) -> None:
    """Refuse a measure [B, K] without mass; on an accelerator by a device-side assertion, without a host sync."""
    message = f"{name} must be > 0 somewhere in every problem: Sinkhorn cannot transport to no mass"
    some = weight.sum(-1) > 0
    if weight.device.type == "cpu":
        if not some.all():
            raise ValueError(f"{message}, got only zeros in problems {(~some).nonzero()[:, 0].tolist()[:5]}")
    else:
        torch._assert_async(some.all(), message)
