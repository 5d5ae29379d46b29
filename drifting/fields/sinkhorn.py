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

    Extra negatives join the second batch as one measure: `neg_weight` is their mass per sample relative to one
    generated sample, so training-time guidance keeps its meaning (repulsion from (1 - gamma) q + gamma p_uncond).

    Args:
        iterations: Sinkhorn sweeps per plan.
        cost: distance -> cost; in units where the mean distance is 1 when features are normalised.
    """

    iterations: int = 20
    cost: Callable[[Tensor], Tensor] = half_squared_distance

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"Sinkhorn: iterations must be >= 1, got {self.iterations}")

    def __call__(self, distance: Tensor, columns: Columns, *, temperature: float) -> Coupling:
        """Coefficients [B, G, M]; see the module's formula."""
        if columns.self_is_gen:
            raise ValueError(
                "Sinkhorn needs self_ref [B, G', D], an independent second generated batch; got none "
                "(at low temperature the plan of a batch to itself is the identity, and nothing repels)"
            )
        cost = self.cost(distance)
        split = [columns.num_negative, columns.num_pos]
        negative_weight, positive_weight = torch.split(columns.weight, split, dim=-1)
        negative_cost, positive_cost = torch.split(cost, split, dim=-1)
        _check_mass("gen_weight and neg_weight together", negative_weight)
        _check_mass("pos_weight", positive_weight)
        push = transport_plan(negative_cost, negative_weight, temperature=temperature, iterations=self.iterations)
        pull = transport_plan(positive_cost, positive_weight, temperature=temperature, iterations=self.iterations)
        contact = Contact(pull.sum(-1).mean(), push.sum(-1).mean(), floor_share=distance.new_zeros(()))
        return Coupling(torch.cat([-push, pull], dim=-1), contact)


def _check_mass(name: str, weight: Tensor) -> None:
    """Refuse a measure [B, K] without mass; on an accelerator by a device-side assertion, without a host sync."""
    message = f"{name} must be > 0 somewhere in every problem: Sinkhorn cannot transport to no mass"
    some = weight.sum(-1) > 0
    if weight.device.type == "cpu":
        if not some.all():
            raise ValueError(f"{message}, got only zeros in problems {(~some).nonzero()[:, 0].tolist()[:5]}")
    else:
        torch._assert_async(some.all(), message)
