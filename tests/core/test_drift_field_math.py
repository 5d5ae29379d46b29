"""What the mean-shift field must obey whatever its kernel: symmetry, equivariance, weights. All in float64."""

from functools import partial

import pytest
import torch

from drifting import (
    DriftLoss,
    MeanShift,
    Sinkhorn,
    drift_field,
    gaussian,
    laplacian,
    row_affinity,
    two_sided_affinity,
    unnormalized_affinity,
)

AFFINITIES = [two_sided_affinity, row_affinity, unnormalized_affinity]
KERNELS = [laplacian, gaussian]
TAU = 0.7  # in the unit of the samples: every kernel below sees everything


def clouds(*counts: int, width: int = 3, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Clouds [B, count, D] of different means, one per count."""
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, width, generator=rng, dtype=torch.float64) + 0.3 * k for k, count in enumerate(counts)
    ]


def rotation(width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))[0]


def assert_zero(v: torch.Tensor) -> None:
    torch.testing.assert_close(v, torch.zeros_like(v), rtol=0, atol=1e-13)


every_field = pytest.mark.parametrize(
    "field",
    [MeanShift(kernel, affinity, floor) for kernel in KERNELS for affinity in AFFINITIES for floor in (0.0, 1e-3)],
    ids=lambda f: f"{f.kernel.__name__}-{f.affinity.__name__}-{f.floor}",
)


@every_field
def test_swapping_data_and_model_negates_the_drift(field):
    """V_{p,q}(x) = -V_{q,p}(x) at any probes x (Eq. 11): holds exactly where both batches are given, p as `pos` and q
    as `self_ref`. With the batch reused as its own negatives the probes are q, so the two sides cannot be swapped."""
    x, p, q = clouds(4, 5, 6)
    forward = drift_field(x, p, self_ref=q, temperature=TAU, field=field)
    backward = drift_field(x, q, self_ref=p, temperature=TAU, field=field)
    assert forward.abs().max() > 1e-3
    torch.testing.assert_close(forward, -backward, rtol=1e-12, atol=1e-14)


@every_field
def test_extra_negatives_and_second_batch_are_one_side_of_the_symmetry(field):
    x, p, q, u = clouds(4, 5, 6, 3)
    weight = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = torch.cat([q, u], dim=1)
    both_weight = torch.cat([torch.ones(2, 6, dtype=torch.float64), weight], dim=1)
    forward = drift_field(x, p, u, self_ref=q, neg_weight=weight, temperature=TAU, field=field)
    backward = drift_field(x, both, self_ref=p, pos_weight=both_weight, temperature=TAU, field=field)
    torch.testing.assert_close(forward, -backward, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sides", [{"attraction": 1.5}, {"repulsion": 1.5}, {"repulsion": 0.0}])
def test_unequal_sides_break_the_symmetry(sides):
    x, p, q = clouds(4, 5, 6)
    field = MeanShift(**sides)
    forward = drift_field(x, p, self_ref=q, temperature=TAU, field=field)
    backward = drift_field(x, q, self_ref=p, temperature=TAU, field=field)
    assert (forward + backward).abs().max() > 1e-2


@every_field
def test_no_drift_where_the_batches_agree(field):
    (x,) = clouds(6)
    assert_zero(drift_field(x, pos=x, mask_self=False, temperature=TAU, field=field))
    assert_zero(drift_field(x, pos=x, neg=x, mask_self=False, temperature=TAU, field=field))


@every_field
def test_no_drift_at_any_probe_where_positives_are_the_second_batch(field):
    x, p = clouds(4, 5)
    assert_zero(drift_field(x, pos=p, self_ref=p.flip(1), temperature=TAU, field=field))
    assert_zero(drift_field(x, pos=p, neg=p, self_ref=p, temperature=TAU, field=field))


def test_the_self_mask_alone_keeps_a_finite_batch_from_resting():
    """Why the proofs above turn the mask off: a sample then sees its own copy among positives, not among negatives."""
    (x,) = clouds(6)
    assert drift_field(x, pos=x, temperature=TAU).abs().max() > 1e-2


every_rule = pytest.mark.parametrize(
    "drift",
    [
        *[
            pytest.param(partial(drift_field, temperature=TAU, field=MeanShift(kernel, affinity)), id=name)
            for kernel in KERNELS
            for affinity in AFFINITIES
            for name in [f"{kernel.__name__}-{affinity.__name__}"]
        ],
        pytest.param(partial(drift_field, temperature=TAU, field=Sinkhorn(30)), id="sinkhorn"),
        pytest.param(
            partial(drift_field, temperature=TAU, field=MeanShift(attraction=1.5, repulsion=0.5)), id="uneven"
        ),
        pytest.param(lambda *a, **k: DriftLoss().terms(*a, **k).drift, id="loss"),
    ],
)


@every_rule
def test_translation_does_not_change_the_drift(drift):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    shift = torch.tensor([100.0, -7.0, 3.0], dtype=torch.float64)
    moved = drift(gen + shift, pos + shift, neg + shift, self_ref=ref + shift)
    torch.testing.assert_close(moved, drift(gen, pos, neg, self_ref=ref), rtol=1e-9, atol=1e-11)


@every_rule
def test_rotation_turns_the_drift_along(drift):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    r = rotation(3)
    turned = drift(gen @ r, pos @ r, neg @ r, self_ref=ref @ r)
    torch.testing.assert_close(turned, drift(gen, pos, neg, self_ref=ref) @ r, rtol=1e-9, atol=1e-11)


@every_rule
def test_order_of_references_does_not_matter_and_order_of_generated_and_problems_is_kept(drift):
    gen, pos, neg, ref = clouds(4, 5, 3, 6, batch=3)
    weights = [torch.rand(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (6, 5, 3)]
    given = drift(gen, pos, neg, self_ref=ref, gen_weight=weights[0], pos_weight=weights[1], neg_weight=weights[2])
    problem, row = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])

    def shuffled(block: torch.Tensor) -> torch.Tensor:
        return block[problem].flip(1)

    moved = drift(
        gen[problem][:, row],
        shuffled(pos),
        shuffled(neg),
        self_ref=shuffled(ref),
        gen_weight=shuffled(weights[0]),
        pos_weight=shuffled(weights[1]),
        neg_weight=shuffled(weights[2]),
    )
    torch.testing.assert_close(moved, given[problem][:, row], rtol=1e-10, atol=1e-12)


def test_a_batch_that_is_its_own_negatives_may_be_permuted():
    gen, pos = clouds(5, 4)
    order = torch.tensor([3, 1, 4, 0, 2])
    weight = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = drift_field(gen, pos, gen_weight=weight, temperature=TAU)
    moved = drift_field(gen[:, order], pos, gen_weight=weight[:, order], temperature=TAU)
    torch.testing.assert_close(moved, given[:, order], rtol=1e-11, atol=1e-13)


def test_problems_do_not_see_each_other_but_through_the_two_scalars():
    gen, pos = clouds(4, 5)
    together = drift_field(gen, pos, temperature=TAU)
    for b in range(2):
        torch.testing.assert_close(drift_field(gen[b : b + 1], pos[b : b + 1], temperature=TAU)[0], together[b])


@pytest.mark.parametrize("factor", [1e-2, 7.0, 1e6])
@pytest.mark.parametrize("field", [MeanShift(), Sinkhorn()], ids=["mean_shift", "sinkhorn"])
def test_normalised_loss_does_not_see_the_unit_of_the_features(factor, field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    loss = DriftLoss(field=field)
    results = []
    for k in (1.0, factor):
        x = (k * gen).requires_grad_()
        terms = loss.terms(x, k * pos, k * neg, self_ref=k * ref)
        terms.loss.mean().backward()
        results.append((terms, k * x.grad))
    (one, one_gradient), (other, other_gradient) = results
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.drift, one.drift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.drift_rms, one.drift_rms, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.scale, factor * one.scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(other_gradient, one_gradient, rtol=1e-9, atol=1e-9 * float(one_gradient.abs().max()))


def test_normalised_drift_has_unit_mean_square_per_temperature():
    gen, pos = clouds(4, 5)
    for tau in (0.02, 0.05, 0.2):
        assert DriftLoss((tau,)).terms(gen, pos).drift.square().mean().item() == pytest.approx(1.0, rel=1e-12)


def test_drift_of_several_temperatures_is_the_sum_of_each():
    gen, pos = clouds(4, 5)
    parts = [DriftLoss((tau,)).terms(gen, pos).drift for tau in (0.02, 0.05, 0.2)]
    torch.testing.assert_close(DriftLoss((0.02, 0.05, 0.2)).terms(gen, pos).drift, sum(parts), rtol=1e-12, atol=1e-14)


# Weights: multiply affinities after both normalisations.


def zero_weight_and_absent(field, **settings):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    drift = partial(drift_field, gen, temperature=TAU, field=field, self_ref=ref)
    zero = drift(pos, neg, neg_weight=torch.zeros(2, dtype=torch.float64))
    return zero, drift(pos)


@pytest.mark.parametrize("affinity", [two_sided_affinity, row_affinity])
def test_zero_weight_reference_still_dilutes_a_normalised_affinity(affinity):
    """As in the authors' code: its coefficient is zero, but it stays in the other columns' softmax."""
    zero, absent = zero_weight_and_absent(MeanShift(affinity=affinity))
    assert (zero - absent).abs().max() > 1e-2
    # Its only trace is that row-wise dilution: with P and N diluted alike, each row shrinks as a whole for `row`.
    if affinity is row_affinity:
        zero, absent = zero_weight_and_absent(MeanShift(affinity=affinity, floor=0.0))
        cosine = torch.nn.functional.cosine_similarity(zero, absent, dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", [MeanShift(affinity=unnormalized_affinity), Sinkhorn()], ids=["bare", "sinkhorn"])
def test_zero_weight_reference_equals_an_absent_one_without_shared_sums(field):
    zero, absent = zero_weight_and_absent(field)
    torch.testing.assert_close(zero, absent, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("field", [MeanShift(affinity=unnormalized_affinity), Sinkhorn()], ids=["bare", "sinkhorn"])
def test_zero_weight_leaves_the_feature_scale_alone(field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    loss = DriftLoss(field=field)
    zero = loss.terms(gen, pos, 100 * neg, self_ref=ref, neg_weight=torch.zeros(2))
    absent = loss.terms(gen, pos, self_ref=ref)
    torch.testing.assert_close(zero.scale, absent.scale, rtol=1e-11, atol=0)
    torch.testing.assert_close(zero.drift, absent.drift, rtol=1e-8, atol=1e-10)


def weight_two_and_duplicate(field):
    gen, pos, ref = clouds(4, 5, 6)
    weight = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.float64).expand(2, 5)
    doubled = torch.cat([pos[:, :1], pos], dim=1)
    drift = partial(drift_field, gen, self_ref=ref, temperature=TAU, field=field)
    return drift(pos, pos_weight=weight), drift(doubled)


@pytest.mark.parametrize("affinity", [two_sided_affinity, row_affinity])
def test_weight_two_is_not_a_duplicate_in_a_normalised_affinity(affinity):
    weighted, duplicated = weight_two_and_duplicate(MeanShift(affinity=affinity))
    assert (weighted - duplicated).abs().max() > 1e-2


@pytest.mark.parametrize("field", [MeanShift(affinity=unnormalized_affinity), Sinkhorn(200)], ids=["bare", "sinkhorn"])
def test_weight_two_is_a_duplicate_without_shared_sums(field):
    weighted, duplicated = weight_two_and_duplicate(field)
    torch.testing.assert_close(weighted, duplicated, rtol=1e-9, atol=1e-11)


def test_weight_per_problem_equals_the_same_weight_on_every_sample():
    gen, pos, neg = clouds(4, 5, 3)
    w = torch.tensor([0.3, 2.0], dtype=torch.float64)
    spread = {"gen_weight": (w, 4), "pos_weight": (w, 5), "neg_weight": (w, 3)}
    short = drift_field(gen, pos, neg, **{k: v for k, (v, _) in spread.items()})
    long = drift_field(gen, pos, neg, **{k: v[:, None].expand(2, n) for k, (v, n) in spread.items()})
    assert torch.equal(short, long)


def test_attraction_and_repulsion_scale_their_own_sum():
    gen, pos = clouds(4, 5)
    pull = drift_field(gen, pos, temperature=TAU, field=MeanShift(repulsion=0.0))
    push = drift_field(gen, pos, temperature=TAU, field=MeanShift(attraction=0.0))
    assert pull.abs().max() > 1e-2 and push.abs().max() > 1e-2
    mixed = drift_field(gen, pos, temperature=TAU, field=MeanShift(attraction=1.5, repulsion=0.25))
    torch.testing.assert_close(mixed, 1.5 * pull + 0.25 * push, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(drift_field(gen, pos, temperature=TAU), pull + push, rtol=1e-12, atol=1e-14)


def test_pull_points_to_the_data_and_push_away_from_the_other_sample():
    gen = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    pos = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    pull = drift_field(gen, pos, temperature=TAU, field=MeanShift(repulsion=0.0))[0, 0]
    push = drift_field(gen, pos, temperature=TAU, field=MeanShift(attraction=0.0))[0, 0]
    assert pull[1] > 0 and abs(pull[0]) < 1e-12
    assert push[0] < 0 and abs(push[1]) < 1e-12


def test_floor_is_the_smallest_affinity_and_reaches_far_samples():
    gen = torch.tensor([[[0.0], [0.1]]], dtype=torch.float64)
    pos = torch.tensor([[[1e4]]], dtype=torch.float64)
    assert not drift_field(gen, pos, temperature=0.05, field=MeanShift(floor=0.0)).any()
    floored = drift_field(gen, pos, temperature=0.05, field=MeanShift(floor=1e-3))
    # Affinity to the positive and to the masked self is the floor, to the other sample 1.
    negative, positive = 1.0 + 1e-3, 1e-3
    expected = [positive * negative * (1e4 - x) - 1.0 * positive * (other - x) for x, other in ((0.0, 0.1), (0.1, 0.0))]
    torch.testing.assert_close(floored[0, :, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_affinities_normalise_what_they_say():
    log_affinity = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = log_affinity.exp()
    row, column = kernel.sum(-1, keepdim=True), kernel.sum(-2, keepdim=True)
    torch.testing.assert_close(two_sided_affinity(log_affinity), kernel / (row * column).sqrt())
    torch.testing.assert_close(row_affinity(log_affinity), kernel / row)
    torch.testing.assert_close(unnormalized_affinity(log_affinity), kernel)


def test_kernels_are_the_logarithms_of_their_formulas():
    d = torch.linspace(0, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(laplacian(d, 0.4).exp(), torch.exp(-d / 0.4))
    torch.testing.assert_close(gaussian(d, 0.4).exp(), torch.exp(-(d**2) / (2 * 0.4**2)))
