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
from drifting.fields.mass import check_mass
from drifting.kernels import Temperature


def half_squared_distance(distance: Tensor) -> Tensor:
    """Cost |x - y|^2 / 2: its gradient is the displacement, so plans move samples along straight lines."""
    return 0.5 * distance.square()


def distance_cost(distance: Tensor) -> Tensor:
    """Cost |x - y|, of the Wasserstein-1 distance: outliers weigh less.

    The drift stays the mean displacement of the plan, whose length does not matter to this cost; it is no gradient.
    """
    return distance


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """A plan and how it was found."""

    matrix: Tensor  # [B, G, M]  rows sum to one, exactly
    sweeps: Tensor  # [B]  that were run, in the plan's float type


def transport_plan(
    cost: Tensor, weight: Tensor, *, temperature: Temperature, iterations: int, tolerance: float = 0.0
) -> TransportPlan:
    """Entropic plan between G equal masses and M masses proportional to `weight`, rows scaled to sum to one.

    Args:
        cost: [B, G, M].
        weight: [B, M], non-negative, some of each row positive; a column of weight 0 receives nothing.
        temperature: entropic regularisation, in the unit of `cost`.
        iterations: sweeps, at most; each fits the columns, then the rows.
        tolerance: a problem keeps its plan once `column_error` is below this; 0 runs every sweep. Above 0 each sweep
            reads one flag from the device.
    """
    log_kernel = cost * (-1.0 / temperature)
    # Masses per generated sample: rows have mass 1, columns share the total mass G by weight.
    log_column_mass = (weight * (cost.shape[1] / weight.sum(-1, keepdim=True))).log()[:, None, :]
    log_row = torch.zeros_like(cost[..., :1])
    log_column = torch.zeros_like(log_column_mass)
    sweeps = cost.new_full((cost.shape[0],), float(iterations))
    running = torch.ones_like(log_row[:, :1], dtype=torch.bool)  # [B, 1, 1]
    for sweep in range(iterations):
        next_column = log_column_mass - (log_kernel + log_row).logsumexp(dim=-2, keepdim=True)
        if tolerance and sweep:
            # The correction that a column still needs is its mass error. Problems stop one by one: none may depend on
            # its neighbours in the batch.
            misfit = (log_column - next_column).expm1().abs().masked_fill(log_column_mass.isneginf(), 0.0)
            stopping = running & (misfit.amax(-1, keepdim=True) < tolerance)
            sweeps = torch.where(stopping[:, 0, 0], float(sweep), sweeps)
            running = running & ~stopping
            if not running.any():
                break
            next_column = torch.where(running, next_column, log_column)
        log_column = next_column
        # From the same columns a stopped problem finds the same rows.
        log_row = -(log_kernel + log_column).logsumexp(dim=-1, keepdim=True)
    # The last row fit once more, as a softmax: costs of 1e4 temperatures would leave rounding in the row sums.
    return TransportPlan((log_kernel + log_column).softmax(dim=-1), sweeps)


def column_error(plan: Tensor, weight: Tensor) -> Tensor:
    """Largest relative error of a column's mass, max_j |sum_i P_ij / b_j - 1| over columns of some mass, [B].

    Args:
        plan: [B, G, M], rows summing to one.
        weight: [B, M]; columns should share the mass G in proportion, b_j = G w_j / sum w.
    """
    mass = weight * (plan.shape[1] / weight.sum(-1, keepdim=True))
    return torch.where(mass > 0, plan.sum(-2) / mass - 1, 0.0).abs().amax(-1)


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
    `VelocityGuidance(Sinkhorn())` guides by transport instead, as W-Flow does.

    Args:
        iterations: Sinkhorn sweeps per plan; the most there are when `tolerance` is given.
        cost: distance -> cost; in units where the mean distance is 1 when features are normalised.
        guidance_temperature: tau_g of the density's kernel exp(-cost / tau_g).
        tolerance: largest relative error of a column's mass at which a plan is finished (W-Flow: 1e-4). 0 runs a fixed
            number of sweeps. Above 0 every sweep waits for the device: faster on a CPU, where few sweeps are enough.
    """

    iterations: int = 20
    cost: Callable[[Tensor], Tensor] = half_squared_distance
    guidance_temperature: float = 0.05
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"Sinkhorn: iterations must be >= 1, got {self.iterations}")
        if not 0 < self.guidance_temperature < float("inf"):
            raise ValueError(f"Sinkhorn: guidance_temperature must be finite and > 0, got {self.guidance_temperature}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"Sinkhorn: tolerance must lie in [0, 1), a relative mass error, got {self.tolerance}; "
                "0 runs all iterations"
            )

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: Temperature, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the formulas of module and class."""
        if columns.self_is_gen:
            raise ValueError(
                "Sinkhorn needs self_ref [B, G', D], an independent second generated batch; got none "
                "(at low temperature the plan of a batch to itself is the identity, and nothing repels)"
            )
        split = [columns.num_self, columns.num_neg, columns.num_pos]
        self_weight, neg_weight, pos_weight = torch.split(columns.weight, split, dim=-1)
        self_cost, neg_cost, pos_cost = torch.split(self.cost(distance), split, dim=-1)
        check_mass("gen_weight", self_weight.sum(-1), "Sinkhorn cannot transport to no mass")
        check_mass("pos_weight", pos_weight.sum(-1), "Sinkhorn cannot transport to no mass")
        push = self._plan(self_cost, self_weight, temperature)
        pull = self._plan(pos_cost, pos_weight, temperature)
        blocks = [-push.matrix, pull.matrix]
        if columns.num_neg:
            strength = neg_weight.sum(-1) / self_weight.sum(-1)  # [B]
            away, towards = density_guidance(
                neg_cost, neg_weight, pos_cost, pos_weight, temperature=self.guidance_temperature
            )
            strength = strength[:, None, None]
            blocks = [-push.matrix, strength * away, pull.matrix + strength * towards]
        contact = None
        if with_contact:
            contact = Contact(
                positive_mass=pull.matrix.sum(-1).mean(-1),
                negative_mass=push.matrix.sum(-1).mean(-1),
                plan_error=column_error(push.matrix, self_weight).maximum(column_error(pull.matrix, pos_weight)),
                sweeps=push.sweeps.maximum(pull.sweeps),
            )
        return Coupling(torch.cat(blocks, dim=-1), balanced=True, contact=contact)

    def _plan(self, cost: Tensor, weight: Tensor, temperature: Temperature) -> TransportPlan:
        return transport_plan(
            cost, weight, temperature=temperature, iterations=self.iterations, tolerance=self.tolerance
        )


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
