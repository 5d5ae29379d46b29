"""VelocityGuidance: V_cond + (alpha - 1)(V_cond - V_uncond) for any field, alpha recovered from weights."""

import pytest
import torch
from field_formulas import ask, clouds, columns_of, direct_drift

from drifting import DriftLoss, MeanShift, Sinkhorn, gaussian, guidance_weight, unnormalized_affinity
from drifting.fields import KernelGradient, Mmd, Sharp, VelocityGuidance
from drifting.fields.mean_shift import WeightPlacement
from drifting.fields.velocity_guidance import guidance_excess

TAU = 0.7
BARE = MeanShift(gaussian, unnormalized_affinity, floor=0.0)
INNER = {
    "mean_shift": MeanShift(),
    "bare": BARE,
    "kernel_gradient": KernelGradient(),
    "sharp": Sharp(),
    "mmd": Mmd(),
    "sinkhorn": Sinkhorn(30),
}
every_field = pytest.mark.parametrize("field", INNER.values(), ids=INNER.keys())
ALPHA = torch.tensor([1.7, 3.0], dtype=torch.float64)


def ones(*counts: int) -> list[torch.Tensor]:
    return [torch.ones(2, n, dtype=torch.float64) for n in counts]


def spread(per_problem: torch.Tensor, count: int) -> torch.Tensor:
    return per_problem[:, None].expand(2, count)


def batches(field) -> list[tuple[torch.Tensor | None, int]]:
    """(second batch, samples that repel) that a field can be asked with."""
    (ref,) = clouds(6, seed=3)
    return [(ref, 6)] if isinstance(field, Sinkhorn) else [(ref, 6), (None, 5)]


@every_field
def test_it_is_the_formula(field):
    gen, pos, neg = clouds(5, 7, 3)
    for ref, own in batches(field):
        weight = spread(guidance_weight(ALPHA, num_gen=own, num_uncond=3), 3)
        guided = direct_drift(
            VelocityGuidance(field),
            gen,
            pos,
            neg,
            self_ref=ref,
            temperature=TAU,
            weights=[*ones(own), weight, *ones(7)],
        )
        conditional = direct_drift(field, gen, pos, self_ref=ref, temperature=TAU)
        # Seven positives' mass on three samples; for fields of mass any factor does.
        as_positives = [*ones(own), torch.full((2, 3), 7 / 3, dtype=torch.float64)]
        unconditional = direct_drift(field, gen, neg, self_ref=ref, temperature=TAU, weights=as_positives)
        excess = (ALPHA - 1)[:, None, None]
        expected = conditional + excess * (conditional - unconditional)
        torch.testing.assert_close(guided, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("second_batch", [False, True])
def test_alpha_is_recovered_from_the_weights(second_batch):
    gen, pos, neg, ref = clouds(5, 7, 3, 6)
    own = 6 if second_batch else 5
    weight = spread(guidance_weight(ALPHA, num_gen=own, num_uncond=3), 3)
    for scale in (1.0, 2.5):  # weights of the self block are a unit, not a guidance
        weights = [scale * ones(own)[0], scale * weight, *ones(7)]
        columns = columns_of(gen, pos, neg, ref if second_batch else None, weights)
        torch.testing.assert_close(guidance_excess(columns), ALPHA - 1, rtol=1e-12, atol=0)


@every_field
def test_no_extra_mass_equals_no_extra_negatives(field):
    gen, pos, neg = clouds(5, 7, 3)
    for ref, own in batches(field):
        plain = ask(field, gen, pos, self_ref=ref, temperature=TAU)
        absent = ask(VelocityGuidance(field), gen, pos, self_ref=ref, temperature=TAU)
        assert torch.equal(absent.coefficients, plain.coefficients)
        # The first problem without guidance, the second with.
        weight = spread(guidance_weight(torch.tensor([1.0, 2.0], dtype=torch.float64), own, 3), 3)
        massless = ask(
            VelocityGuidance(field),
            gen,
            1e3 + pos,
            neg,
            self_ref=ref,
            temperature=TAU,
            weights=[*ones(own), weight, *ones(7)],
        )
        far = ask(field, gen, 1e3 + pos, self_ref=ref, temperature=TAU)
        parts = massless.coefficients[0].split([own, 3, 7], dim=-1)
        assert torch.equal(torch.cat([parts[0], parts[2]], dim=-1), far.coefficients[0]) and not parts[1].any()
        assert massless.coefficients[1, :, own : own + 3].any()


@pytest.mark.parametrize("name", ["bare", "kernel_gradient", "sharp", "mmd", "sinkhorn"])
def test_extra_negatives_like_the_positives_do_not_guide(name):
    """As many or not: in the positives' place they get the positives' mass."""
    gen, pos = clouds(5, 7)
    neg = torch.cat([pos, pos], dim=1)
    field = INNER[name]
    for ref, own in batches(field):
        weights = [*ones(own), spread(guidance_weight(ALPHA, own, 14), 14), *ones(7)]
        guided = direct_drift(VelocityGuidance(field), gen, pos, neg, self_ref=ref, temperature=TAU, weights=weights)
        plain = direct_drift(field, gen, pos, self_ref=ref, temperature=TAU)
        torch.testing.assert_close(guided, plain, rtol=1e-9, atol=1e-11)


def test_extra_negatives_are_no_negatives_of_the_inner_field():
    """One that coincides with a sample repels nobody by itself: its place is the positives'."""
    gen, pos, ref = clouds(5, 7, 6)
    field = KernelGradient(gaussian)
    weights = [*ones(6), spread(guidance_weight(ALPHA, 6, 5), 5), *ones(7)]
    outer = direct_drift(VelocityGuidance(field), gen, pos, gen, self_ref=ref, temperature=TAU, weights=weights)
    inner = direct_drift(field, gen, pos, gen, self_ref=ref, temperature=TAU, weights=weights)
    assert (outer - inner).abs().max() > 0.1


def test_at_rest_the_guided_density_is_the_product_that_diffusion_guidance_aims_at():
    """KernelGradient, densities known: p = N(0, 1), uncond = N(0, 4), q ~ p^alpha uncond^(1 - alpha) is at rest.

    Many samples stand for the densities, on a grid of weights; a narrow kernel hardly blurs them."""
    grid = torch.linspace(-8, 8, 641, dtype=torch.float64)[None, :, None]
    alpha, log_p, log_uncond = 2.0, -(grid[..., 0] ** 2) / 2, -(grid[..., 0] ** 2) / 8
    log_q = alpha * log_p + (1 - alpha) * log_uncond
    p, uncond, q = (log.exp() / log.exp().sum() for log in (log_p, log_uncond, log_q))
    probes = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[None, :, None]
    excess = (alpha - 1) * 640 / 641  # times the self block's mass, 1
    field = VelocityGuidance(KernelGradient(gaussian))
    named = {"self_ref": grid, "temperature": 0.05}
    drift = direct_drift(field, probes, grid, grid, weights=[q, excess * uncond, p], **named)
    unguided = direct_drift(field, probes, grid, grid, weights=[p, excess * uncond, p], **named)
    assert drift.abs().max() < 1e-4 < 1e-3 < unguided.abs().max()


@pytest.mark.parametrize("field", [Sinkhorn(), MeanShift()], ids=["sinkhorn", "mean_shift"])
def test_balanced_rows_stay_balanced(field):
    gen, pos, neg = clouds(5, 7, 3)
    (ref, own), *_ = batches(field)
    weights = [*ones(own), 3 * ones(3)[0], *ones(7)]
    coupling = ask(VelocityGuidance(field), gen, pos, neg, self_ref=ref, weights=weights)
    assert coupling.balanced
    rows = coupling.coefficients.sum(-1)
    torch.testing.assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-12)
    assert not ask(VelocityGuidance(KernelGradient()), gen, pos, neg).balanced


def test_contact_is_that_of_the_positives_and_of_the_worse_plan():
    gen, pos, neg, ref = clouds(5, 7, 3, 6)
    field = Sinkhorn(500, tolerance=1e-2)
    named = {"self_ref": ref, "temperature": 1.0}
    for one, other in ((pos, neg), (neg, pos)):
        contact = ask(VelocityGuidance(field), gen, one, other, **named).contact
        plans = [ask(field, gen, block, **named).contact for block in (one, other)]
        torch.testing.assert_close(contact.plan_error, plans[0].plan_error.maximum(plans[1].plan_error))
        assert torch.equal(contact.sweeps, plans[0].sweeps.maximum(plans[1].sweeps))
        assert (plans[0].plan_error != plans[1].plan_error).all() and (plans[0].sweeps != plans[1].sweeps).any()
    inner = ask(KernelGradient(), gen, pos).contact
    outer = ask(VelocityGuidance(KernelGradient()), gen, pos, neg).contact
    assert torch.equal(outer.positive_mass, inner.positive_mass)
    assert ask(VelocityGuidance(field), gen, pos, neg, with_contact=False, **named).contact is None


def test_guidance_works_within_the_loss():
    gen, pos, neg, ref = (x.float() for x in clouds(5, 7, 3, 6))
    for field in (Sinkhorn(), MeanShift(), MeanShift(weight_placement=WeightPlacement.KERNEL), KernelGradient()):
        loss = DriftLoss((0.1, 0.5), VelocityGuidance(field))
        drifts = [
            loss.terms(gen, pos, neg, self_ref=ref, neg_weight=guidance_weight(alpha * torch.ones(2), 6, 3)).drift
            for alpha in (1.0, 1.5, 3.0)
        ]
        assert all(torch.isfinite(drift).all() for drift in drifts)
        assert (drifts[0] - drifts[1]).abs().max() > 1e-2 < (drifts[1] - drifts[2]).abs().max()


def test_refused_where_alpha_cannot_be_read():
    gen, pos, neg, ref = clouds(5, 7, 3, 1)
    with pytest.raises(ValueError, match="self_ref must hold K >= 2 samples, got 1"):
        ask(VelocityGuidance(Sinkhorn()), gen, pos, neg, self_ref=ref)
    with pytest.raises(ValueError, match="gen_weight must be > 0 somewhere"):
        ask(VelocityGuidance(MeanShift()), gen, pos, neg, weights=[0 * ones(5)[0], *ones(3, 7)])
