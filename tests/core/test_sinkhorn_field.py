"""Sinkhorn field: plans are transport plans, and the field is minus the gradient of entropic transport costs."""

import numpy as np
import pytest
import torch
from field_formulas import ask
from scipy.optimize import linear_sum_assignment

from drifting import DriftLoss, Sinkhorn, drift_field
from drifting.fields.sinkhorn import column_error, distance_cost, half_squared_distance, transport_plan


def clouds(*counts: int, seed: int = 0, batch: int = 2) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, 2, generator=rng, dtype=torch.float64) + 0.4 * k for k, n in enumerate(counts)]


def cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|x - y|^2 / 2; [B, G, D], [B, M, D] -> [B, G, M]."""
    return 0.5 * (x[:, :, None] - y[:, None]).square().sum(-1)


def unit_weight(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def entropic_cost(x: torch.Tensor, y: torch.Tensor, mass: torch.Tensor, epsilon: float) -> torch.Tensor:
    """OT_eps(sum_i delta_{x_i} / G, sum_j mass_j delta_{y_j}), [B], with its gradient in x.

    Value of the dual at its optimum: <f, a> + <g, b> - eps <a (x) b, exp((f + g - C) / eps) - 1>. At the optimum the
    gradient sees the cost alone (envelope theorem), so the potentials are detached.
    """
    c, a, b = cost(x, y), 1.0 / x.shape[1], mass[:, None, :]
    f, g = torch.zeros_like(c[..., :1]), torch.zeros_like(c[:, :1, :])
    with torch.no_grad():
        for _ in range(3000):
            f = -epsilon * ((g - c) / epsilon + b.log()).logsumexp(-1, keepdim=True)
            g = -epsilon * ((f - c) / epsilon + np.log(a)).logsumexp(-2, keepdim=True)
    surplus = (a * b * (((f + g - c) / epsilon).exp() - 1)).sum((1, 2))
    return (f * a).sum((1, 2)) + (g * b).sum((1, 2)) - epsilon * surplus


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_sum_to_one_and_columns_to_their_mass(weighted):
    x, y = clouds(5, 7)
    rng = torch.Generator().manual_seed(1)
    weight = torch.rand(2, 7, generator=rng, dtype=torch.float64) if weighted else torch.ones(2, 7, dtype=torch.float64)
    plan = transport_plan(cost(x, y), weight, temperature=0.3, iterations=2000).matrix
    torch.testing.assert_close(plan.sum(-1), torch.ones(2, 5, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(plan.sum(-2), 5 * weight / weight.sum(-1, keepdim=True), rtol=1e-9, atol=0)


def test_rows_are_exact_after_one_sweep_and_for_costs_of_any_size():
    x, y = clouds(5, 7)
    for size in (1.0, 1e4, 1e15):
        plan = transport_plan((size * cost(x, y)).float(), torch.ones(2, 7), temperature=0.05, iterations=1)
        torch.testing.assert_close(plan.matrix.sum(-1), torch.ones(2, 5), rtol=1e-6, atol=0)


def test_more_iterations_fit_the_columns_better():
    x, y = clouds(5, 7)

    def misfit(iterations: int) -> float:
        plan = transport_plan(cost(x, y), torch.ones(2, 7, dtype=torch.float64), temperature=0.1, iterations=iterations)
        return (plan.matrix.sum(-2) - 5 / 7).abs().max().item()

    assert misfit(1) > 2 * misfit(20) > 4 * misfit(500)


@pytest.mark.parametrize("seed", range(4))
def test_plan_tends_to_the_optimal_assignment_at_low_temperature(seed):
    x, y = clouds(6, 6, seed=seed, batch=1)
    plan = transport_plan(cost(x, y), torch.ones(1, 6, dtype=torch.float64), temperature=2e-3, iterations=3000).matrix[
        0
    ]
    rows, columns = linear_sum_assignment(cost(x, y)[0].numpy())
    assignment = torch.zeros(6, 6, dtype=torch.float64)
    assignment[rows, columns] = 1.0
    torch.testing.assert_close(plan, assignment, rtol=0, atol=5e-2)


@pytest.mark.parametrize("with_negatives", [False, True])
def test_field_is_minus_the_gradient_of_the_entropic_costs(with_negatives):
    """V_i = -G d/dx_i [OT_eps(x, y) - OT_eps(x, x')], and with extra negatives + m tau d/dx_i log p(positive | x_i)."""
    x, y, ref, neg = clouds(5, 7, 6, 3)
    epsilon, tau = 0.4, 0.7
    weight = torch.tensor([[0.2, 1.5, 0.7], [1.0, 0.4, 3.0]], dtype=torch.float64)
    x.requires_grad_()
    uniform, uniform_ref = (torch.full((2, n), 1 / n, dtype=torch.float64) for n in (7, 6))
    value = (entropic_cost(x, y, uniform, epsilon) - entropic_cost(x, ref, uniform_ref, epsilon)).sum()
    if with_negatives:
        positive = (-cost(x, y) / tau).exp().mean(-1)  # [B, G]
        unconditional = (weight[:, None] * (-cost(x, neg) / tau).exp()).sum(-1) / weight.sum(-1, keepdim=True)
        strength = weight.sum(-1, keepdim=True) / 6
        value = value - (strength * tau / 5 * (positive / (positive + unconditional)).log()).sum()
    (slope,) = torch.autograd.grad(value, x)

    drift = drift_field(
        x,
        y,
        neg if with_negatives else None,
        neg_weight=weight if with_negatives else None,
        self_ref=ref,
        temperature=epsilon,
        field=Sinkhorn(iterations=3000, guidance_temperature=tau),
    )
    torch.testing.assert_close(drift, -5 * slope, rtol=1e-8, atol=1e-10)


def test_swapping_data_and_second_batch_negates_the_drift():
    x, p, q = clouds(4, 5, 6)
    field = Sinkhorn(iterations=7)
    forward = drift_field(x, p, self_ref=q, field=field)
    assert forward.abs().max() > 0.1
    torch.testing.assert_close(forward, -drift_field(x, q, self_ref=p, field=field), rtol=1e-12, atol=1e-14)
    at_rest = drift_field(x, p, self_ref=p, field=field)
    torch.testing.assert_close(at_rest, torch.zeros_like(x), rtol=0, atol=1e-14)


def test_at_high_temperature_the_field_is_the_difference_of_means():
    x, p, q = clouds(4, 5, 6)
    expected = (p.mean(1, keepdim=True) - q.mean(1, keepdim=True)).expand_as(x)
    torch.testing.assert_close(drift_field(x, p, self_ref=q, temperature=1e9, field=Sinkhorn()), expected)


def test_cost_is_a_free_choice():
    x, p, q = clouds(4, 5, 6)
    named = drift_field(x, p, self_ref=q, field=Sinkhorn(cost=half_squared_distance))
    torch.testing.assert_close(named, drift_field(x, p, self_ref=q, field=Sinkhorn()))
    other = drift_field(x, p, self_ref=q, field=Sinkhorn(cost=lambda d: d))
    assert (other - named).abs().max() > 1e-3
    assert torch.equal(other, drift_field(x, p, self_ref=q, field=Sinkhorn(cost=distance_cost)))


def test_refused_without_a_second_batch():
    x, p = clouds(4, 5)
    for call in (lambda: DriftLoss(field=Sinkhorn())(x, p), lambda: drift_field(x, p, field=Sinkhorn())):
        with pytest.raises(ValueError, match=r"Sinkhorn needs self_ref \[B, G', D\]"):
            call()


def test_refused_without_an_iteration():
    with pytest.raises(ValueError, match="iterations must be >= 1, got 0"):
        Sinkhorn(iterations=0)
    with pytest.raises(ValueError, match="guidance_temperature must be finite and > 0, got 0"):
        Sinkhorn(guidance_temperature=0)
    for value in (-1e-4, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"tolerance must lie in \[0, 1\), a relative mass error, got"):
            Sinkhorn(tolerance=value)


def test_refused_without_mass():
    x, p, q, u = clouds(4, 5, 6, 3)
    nothing, one = torch.tensor([1.0, 0.0]), torch.ones(2)
    with pytest.raises(ValueError, match=r"pos_weight must be > 0 somewhere.*problems \[1\]"):
        drift_field(x, p, self_ref=q, pos_weight=nothing, field=Sinkhorn())
    with pytest.raises(ValueError, match=r"gen_weight must be > 0 somewhere.*problems \[1\]"):
        drift_field(x, p, u, self_ref=q, gen_weight=nothing, neg_weight=one, field=Sinkhorn())


def test_guidance_is_off_at_weight_zero_and_pushes_towards_what_only_positives_have():
    x, p, q = clouds(4, 5, 6)
    without = drift_field(x, p, self_ref=q, field=Sinkhorn())
    off = drift_field(x, p, p + 1, self_ref=q, neg_weight=torch.zeros(2), field=Sinkhorn())
    torch.testing.assert_close(off, without, rtol=0, atol=1e-13)
    one = torch.zeros(1, 2, 1, dtype=torch.float64)  # both samples at 0, a positive at 1, an extra negative at -1
    guided = drift_field(
        one, one[:, :1] + 1, one[:, :1] - 1, self_ref=one, field=Sinkhorn(), neg_weight=torch.full((1,), 4.0)
    )
    # transport +1; guidance: m = 4 / 2, share 1/2 of each, (1 - 1/2) 1 - 1/2 (-1) = 1
    torch.testing.assert_close(guided, torch.full_like(one, 3.0), rtol=1e-6, atol=0)


# Tolerance: stop when the columns fit.


def test_column_error_is_the_largest_relative_one():
    plan = torch.tensor([[[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    # Masses 1.5, 0.5 and none; sums 1.2, 0.8, 0.
    torch.testing.assert_close(column_error(plan, weight), torch.tensor([0.6], dtype=torch.float64))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_tolerance_stops_at_the_first_sweep_that_meets_it(tolerance):
    x, y = clouds(6, 9, batch=3)
    weight = 0.2 + torch.rand(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[:, 4] = 0.0
    given = {"temperature": 0.3, "iterations": 1000}
    stopped = transport_plan(cost(x, y), weight, tolerance=tolerance, **given)
    assert len(set(stopped.sweeps.tolist())) > 1  # problems stop one by one
    assert (column_error(stopped.matrix, weight) < tolerance).all()
    for b, sweeps in enumerate(stopped.sweeps.int().tolist()):
        fixed, before = (
            transport_plan(cost(x, y)[b : b + 1], weight[b : b + 1], temperature=0.3, iterations=n).matrix
            for n in (sweeps, sweeps - 1)
        )
        torch.testing.assert_close(stopped.matrix[b : b + 1], fixed, rtol=1e-12, atol=0)
        assert column_error(before, weight[b : b + 1]) >= tolerance


def test_with_a_tolerance_no_problem_depends_on_its_neighbours():
    x, y = clouds(6, 9, batch=4)
    given = {"temperature": 0.3, "iterations": 1000, "tolerance": 1e-3}
    together = transport_plan(cost(x, y), unit_weight(4, 9), **given)
    for b in range(4):
        alone = transport_plan(cost(x, y)[b : b + 1], unit_weight(1, 9), **given)
        assert torch.equal(alone.matrix, together.matrix[b : b + 1])
        assert alone.sweeps == together.sweeps[b]


def test_iterations_bound_the_sweeps_of_a_tolerance():
    x, y = clouds(6, 9)
    plan = transport_plan(cost(x, y), unit_weight(2, 9), temperature=0.01, iterations=5, tolerance=1e-9)
    assert plan.sweeps.tolist() == [5, 5]
    fixed = transport_plan(cost(x, y), unit_weight(2, 9), temperature=0.01, iterations=5)
    assert torch.equal(plan.matrix, fixed.matrix) and fixed.sweeps.tolist() == [5, 5]


def test_contact_tells_how_well_the_plans_fit():
    x, p, q = clouds(4, 5, 6)
    loose = ask(Sinkhorn(2), x, p, self_ref=q, temperature=0.05).contact
    tight = ask(Sinkhorn(5000, tolerance=1e-4), x, p, self_ref=q, temperature=0.05).contact
    assert loose.sweeps.tolist() == [2, 2] and (tight.sweeps > 2).all()
    assert (loose.plan_error > 1e-2).all() and (tight.plan_error < 1e-4).all()
    assert loose.plan_error.shape == tight.positive_mass.shape == (2,)
    for pos, ref in ((p, q), (q, p)):
        errors = [
            column_error(
                transport_plan(cost(x, y), unit_weight(2, y.shape[1]), temperature=0.05, iterations=2).matrix,
                unit_weight(2, y.shape[1]),
            )
            for y in (pos, ref)
        ]
        contact = ask(Sinkhorn(2), x, pos, self_ref=ref, temperature=0.05).contact
        torch.testing.assert_close(contact.plan_error, torch.maximum(*errors))
