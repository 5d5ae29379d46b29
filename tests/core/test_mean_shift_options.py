"""The options of the mean-shift field: blocks normalised apart, weights on the kernel, centroids without bias."""

import math
from itertools import product

import pytest
import torch
from field_formulas import ask, clouds, direct_drift, some_weights
from plain_formulas import plain_distance

from drifting import (
    DriftLoss,
    MeanShift,
    drift_field,
    gaussian,
    guidance_weight,
    laplacian,
    row_affinity,
    two_sided_affinity,
    unnormalized_affinity,
)
from drifting.fields import WeightPlacement

TAU = 0.7
AFFINITIES = {"two-sided": two_sided_affinity, "row": row_affinity, "bare": unnormalized_affinity}
every_affinity = pytest.mark.parametrize("affinity", AFFINITIES.values(), ids=AFFINITIES.keys())


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# Blocks normalised apart.


def plain_affinity(name: str, logit: torch.Tensor) -> torch.Tensor:
    match name:
        case "two-sided":
            return (logit.softmax(-1) * logit.softmax(-2)).sqrt()
        case "row":
            return logit.softmax(-1)
    return logit.exp()


def plain_separate_drift(name: str, gen, pos, neg, ref, weights, floor: float) -> torch.Tensor:
    """Affinities to [self | negatives] and to positives, each a softmax of its own; ref None masks self pairs."""
    negatives = torch.cat([gen if ref is None else ref, neg], dim=1)
    own, extra, positive_weight = weights
    logit = -plain_distance(gen, negatives).clamp(min=1e-4) / TAU
    if ref is None:
        for i in range(gen.shape[1]):
            logit[:, i, i] = -math.inf
    a_neg = plain_affinity(name, logit).clamp(min=floor) * torch.cat([own, extra], dim=1)[:, None]
    a_pos = plain_affinity(name, -plain_distance(gen, pos) / TAU).clamp(min=floor) * positive_weight[:, None]
    pull = (a_pos[..., None] * (pos[:, None] - gen[:, :, None])).sum(2) * a_neg.sum(-1, keepdim=True)
    push = (a_neg[..., None] * (negatives[:, None] - gen[:, :, None])).sum(2) * a_pos.sum(-1, keepdim=True)
    return pull - push


@pytest.mark.parametrize("name", AFFINITIES)
@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("with_ref", [False, True], ids=["own negatives", "second batch"])
def test_separate_blocks_are_normalised_each_on_their_own(name, floor, with_ref):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    weights = some_weights(6 if with_ref else 4, 3, 5)
    ours = drift_field(
        gen,
        pos,
        neg,
        self_ref=ref if with_ref else None,
        gen_weight=weights[0],
        neg_weight=weights[1],
        pos_weight=weights[2],
        temperature=TAU,
        field=MeanShift(affinity=AFFINITIES[name], floor=floor, separate_blocks=True),
    )
    assert_close(ours, plain_separate_drift(name, gen, pos, neg, ref if with_ref else None, weights, floor))


def test_separate_blocks_differ_from_one_matrix_where_normalisation_is_shared():
    gen, pos, neg = clouds(4, 5, 3)
    for affinity in AFFINITIES.values():
        apart, joint = (
            drift_field(gen, pos, neg, temperature=TAU, field=MeanShift(affinity=affinity, separate_blocks=separate))
            for separate in (True, False)
        )
        assert torch.allclose(apart, joint) == (affinity is unnormalized_affinity)


def test_far_positives_pull_as_hard_as_near_ones_when_blocks_are_separate():
    """In one matrix a near negative takes all of a row's mass."""
    gen = torch.tensor([[[0.0], [0.1]]], dtype=torch.float64)
    pos = torch.tensor([[[50.0]]], dtype=torch.float64)
    apart, joint = (
        drift_field(gen, pos, temperature=0.5, field=MeanShift(floor=0.0, separate_blocks=separate))
        for separate in (True, False)
    )
    assert (apart > 10).all() and joint.abs().max() < 1e-10


# Weights on the kernel.


def kernel_field(affinity, **settings) -> MeanShift:
    return MeanShift(affinity=affinity, floor=0.0, weight_placement=WeightPlacement.KERNEL, **settings)


SIDES = ["pos_weight", "neg_weight", "gen_weight"]


def drifts_of(field: MeanShift, counts: dict[str, list[int]], *, as_weights: bool) -> torch.Tensor:
    """Drift with reference j of a side counted `counts[side][j]` times, by its weight or by copies of it."""
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    blocks = {"pos_weight": pos, "neg_weight": neg, "gen_weight": ref}
    weights = {}
    for side, numbers in counts.items():
        if as_weights:
            weights[side] = torch.tensor(numbers, dtype=torch.float64).expand(2, -1)
        else:
            blocks[side] = blocks[side].repeat_interleave(torch.tensor(numbers), dim=1)
    neg = blocks["neg_weight"] if blocks["neg_weight"].shape[1] else None
    return drift_field(
        gen, blocks["pos_weight"], neg, self_ref=blocks["gen_weight"], temperature=TAU, field=field, **weights
    )


COUNTS = {
    "a positive twice": {"pos_weight": [2, 1, 1, 1, 1]},
    "a positive never": {"pos_weight": [1, 0, 1, 1, 1]},
    "a negative twice": {"neg_weight": [1, 2, 1]},
    "a negative never": {"neg_weight": [0, 1, 1]},
    "no negative": {"neg_weight": [0, 0, 0]},
    "some of a second batch": {"gen_weight": [0, 1, 3, 1, 0, 1]},
    "all sides": {"pos_weight": [2, 0, 1, 3, 1], "neg_weight": [0, 4, 1], "gen_weight": [1, 1, 0, 2, 1, 1]},
}


@every_affinity
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize("separate", [False, True], ids=["one matrix", "separate blocks"])
def test_a_weight_on_the_kernel_counts_samples(affinity, counts, separate):
    """Weight 2 is a duplicate, weight 0 an absent reference."""
    field = kernel_field(affinity, separate_blocks=separate)
    assert_close(drifts_of(field, counts, as_weights=True), drifts_of(field, counts, as_weights=False))


@every_affinity
@pytest.mark.parametrize("name", ["a positive never", "a negative never", "no negative"])
def test_weight_zero_is_an_absent_reference_with_bias_correction_too(affinity, name):
    """Not so weight 2: one draw that counts twice has more variance than two draws, and is corrected for more."""
    field = kernel_field(affinity, bias_correction=True)
    assert_close(drifts_of(field, COUNTS[name], as_weights=True), drifts_of(field, COUNTS[name], as_weights=False))


def test_a_weight_on_the_affinity_does_not_count_samples():
    counts = COUNTS["all sides"]
    weighted, copied = (drifts_of(MeanShift(floor=0.0), counts, as_weights=one) for one in (True, False))
    assert (weighted - copied).abs().max() > 1e-2


@every_affinity
def test_weights_of_guidance_count_unconditional_samples(affinity):
    """alpha with w = (alpha - 1)(G - 1) / N: alpha of 1 + 3 k / (G - 1) gives each of 3 negatives weight k."""
    gen, pos, neg = clouds(4, 5, 3)
    alpha = torch.tensor([1.0, 3.0], dtype=torch.float64)
    weight = guidance_weight(alpha, num_gen=4, num_uncond=3)
    assert weight.tolist() == [0.0, 2.0]
    field = kernel_field(affinity)
    drift = drift_field(gen, pos, neg, neg_weight=weight, temperature=TAU, field=field)
    off = drift_field(gen[:1], pos[:1], temperature=TAU, field=field)
    twice = drift_field(gen[1:], pos[1:], neg[1:].repeat(1, 2, 1), temperature=TAU, field=field)
    assert_close(drift, torch.cat([off, twice]))


@every_affinity
def test_unit_weights_on_the_kernel_change_nothing(affinity):
    gen, pos, neg = clouds(4, 5, 3)
    ones = torch.ones(2, 5, dtype=torch.float64)
    weighted = drift_field(gen, pos, neg, pos_weight=ones, temperature=TAU, field=kernel_field(affinity))
    plain = drift_field(gen, pos, neg, temperature=TAU, field=MeanShift(affinity=affinity, floor=0.0))
    assert_close(weighted, plain)


def test_weight_zero_on_the_kernel_leaves_a_finite_loss_and_gradient():
    """In float32, with the floor, as it trains."""
    gen, pos, neg = (x.float() for x in clouds(4, 5, 3))
    gen.requires_grad_()
    loss = DriftLoss(field=MeanShift(weight_placement=WeightPlacement.KERNEL))
    value = loss(gen, pos, neg, neg_weight=torch.tensor([0.0, 1.0]))
    value.backward()
    assert value.isfinite() and gen.grad.isfinite().all()


# Centroids without bias.

ATOMS = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64)
PROBABILITY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SAMPLE = 1.0  # where the generated sample stands


def multinomial(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every composition of n draws of the atoms [K, 3] and its probability [K]."""
    counts = torch.tensor([c for c in product(range(n + 1), repeat=3) if sum(c) == n], dtype=torch.float64)
    log_probability = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1).sum(1)
    return counts.long(), (log_probability + (counts * PROBABILITY.log()).sum(1)).exp()


def expected_centroid(n: int, side: str, field: MeanShift) -> float:
    """Expectation of the field's centroid over all sets of n draws, as positives or as the second batch."""
    counts, probability = multinomial(n)
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)
    draws = torch.stack([ATOMS.repeat_interleave(c) for c in counts])[..., None]  # [K, n, 1]
    gen = torch.full((len(draws), 1, 1), SAMPLE, dtype=torch.float64)
    other = torch.tensor([[[0.1], [0.9]]], dtype=torch.float64).expand(len(draws), 2, 1)
    pos, ref = (draws, other) if side == "pos" else (other, draws)
    coefficient = ask(field, gen, pos, self_ref=ref, temperature=TAU).coefficients[:, 0]
    own = coefficient[:, ref.shape[1] :] if side == "pos" else coefficient[:, : ref.shape[1]]
    share = own / own.sum(-1, keepdim=True)
    return (probability * (share * draws[..., 0]).sum(-1)).sum().item()


def true_centroid(kernel) -> float:
    """The centroid of infinitely many draws."""
    weight = PROBABILITY * kernel((ATOMS - SAMPLE).abs(), TAU).exp()
    return ((weight * ATOMS).sum() / weight.sum()).item()


def fall(n: list[int], bias: list[float]) -> float:
    """Exponent of the power of n by which the bias falls, from least squares of its logarithm."""
    x, y = torch.tensor(n, dtype=torch.float64).log(), torch.tensor(bias, dtype=torch.float64).abs().log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


@pytest.mark.parametrize("side", ["pos", "self_ref"])
@pytest.mark.parametrize(
    ("kernel", "affinity"),
    [(laplacian, unnormalized_affinity), (laplacian, row_affinity), (gaussian, unnormalized_affinity)],
    ids=["laplacian", "laplacian, row", "gaussian"],
)
def test_bias_correction_takes_one_order_of_n_out_of_the_bias(side, kernel, affinity):
    """By enumeration of all draws, so without noise."""
    numbers = [4, 6, 8, 12, 16, 24, 32]
    exact = true_centroid(kernel)
    plain, corrected = (
        [
            expected_centroid(n, side, MeanShift(kernel, affinity, floor=0.0, bias_correction=on)) - exact
            for n in numbers
        ]
        for on in (False, True)
    )
    assert fall(numbers, plain) == pytest.approx(-1.0, abs=0.05)
    assert fall(numbers, corrected) == pytest.approx(-2.0, abs=0.15)
    assert abs(corrected[-1]) < 0.1 * abs(plain[-1])


def plain_corrected_drift(gen, pos, ref, weights) -> torch.Tensor:
    """Both centroids with p + p^2 - p sum p^2 in the place of p, rows of bare affinities."""
    sides = []
    for block, weight in ((pos, weights[0]), (ref, weights[1])):
        affinity = (-plain_distance(gen, block) / TAU).exp() * weight[:, None]
        total = affinity.sum(-1, keepdim=True)
        p = affinity / total
        p = p + p**2 - p * (p**2).sum(-1, keepdim=True)
        sides.append((total, (p[..., None] * (block[:, None] - gen[:, :, None])).sum(2)))
    (mass_pos, to_pos), (mass_neg, to_neg) = sides
    return mass_pos * mass_neg * (to_pos - to_neg)


def test_bias_correction_equals_its_formula():
    gen, pos, ref = clouds(4, 5, 6)
    weights = some_weights(5, 6)
    field = MeanShift(affinity=unnormalized_affinity, floor=0.0, bias_correction=True)
    ours = drift_field(
        gen, pos, self_ref=ref, pos_weight=weights[0], gen_weight=weights[1], temperature=TAU, field=field
    )
    assert_close(ours, plain_corrected_drift(gen, pos, ref, weights))


@pytest.mark.parametrize("options", [{"bias_correction": True}, {"separate_blocks": True}], ids=str)
@every_affinity
def test_rows_stay_balanced(affinity, options):
    gen, pos, neg = clouds(4, 5, 3)
    coupling = ask(MeanShift(affinity=affinity, **options), gen, pos, neg, weights=some_weights(4, 3, 5))
    assert coupling.balanced
    rows = coupling.coefficients.sum(-1)
    torch.testing.assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-14)
    uneven = ask(MeanShift(affinity=affinity, attraction=2.0, **options), gen, pos, neg)
    assert not uneven.balanced and uneven.coefficients.sum(-1).abs().min() > 1e-6


def test_a_single_positive_needs_no_correction():
    gen, pos, ref = clouds(4, 1, 6)
    for affinity in AFFINITIES.values():
        coefficients = [
            ask(MeanShift(affinity=affinity, bias_correction=on), gen, pos, self_ref=ref).coefficients[..., 6:]
            for on in (True, False)
        ]
        assert_close(*coefficients)


def test_a_sample_that_sees_nothing_gets_no_drift_and_no_nan():
    gen, pos = clouds(4, 5)
    field = MeanShift(affinity=unnormalized_affinity, floor=0.0, bias_correction=True)
    drift = drift_field(gen, pos + 1e5, temperature=TAU, field=field)
    assert not drift.any()


# Kernels and affinities are other people's functions.


@every_affinity
@pytest.mark.parametrize("size", [1.0, 1e4], ids=["plain", "underflow"])
def test_affinities_leave_their_argument_as_it_is(affinity, size):
    for dtype in (torch.float32, torch.float64):
        log_affinity = -size * torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
        log_affinity[:, 1, 1] = -math.inf
        before = log_affinity.clone()
        result = affinity(log_affinity)
        assert torch.equal(log_affinity, before)
        assert result.untyped_storage().data_ptr() != log_affinity.untyped_storage().data_ptr()
        assert (result[:, 1, 1] == 0).all() and result.isfinite().all()


def test_an_affinity_that_keeps_its_result_finds_it_unchanged():
    gen, pos = clouds(4, 5)
    kept = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = kept.clone()
    field = MeanShift(affinity=lambda log_affinity: kept, floor=0.3)
    first, second = ask(field, gen, pos).coefficients, ask(field, gen, pos).coefficients
    assert torch.equal(kept, before)
    assert torch.equal(first, second)


def test_an_affinity_may_return_an_expanded_tensor():
    """Every reference seen alike: the drift is the difference of two means."""
    gen, pos, ref = clouds(4, 5, 6)
    field = MeanShift(affinity=lambda log_affinity: log_affinity.new_ones(()).expand_as(log_affinity))
    drift = drift_field(gen, pos, self_ref=ref, temperature=TAU, field=field)
    difference = 30 * (pos.mean(1, keepdim=True) - ref.mean(1, keepdim=True))
    assert_close(drift, difference.expand_as(drift))


def test_a_kernel_may_return_its_argument():
    gen, pos = clouds(4, 5)
    distances = []

    def itself(distance: torch.Tensor, temperature: float) -> torch.Tensor:
        distances.append((distance, distance.clone()))
        return distance

    settings = {"affinity": row_affinity, "floor": 0.0}
    drift = direct_drift(MeanShift(itself, **settings), gen, pos, temperature=TAU)
    written = MeanShift(lambda distance, temperature: 1.0 * distance, **settings)
    assert_close(drift, direct_drift(written, gen, pos, temperature=TAU))
    assert all(torch.equal(now, before) for now, before in distances)


def test_a_kernel_may_return_an_expanded_tensor():
    """Every reference alike, but for the sample itself."""
    gen, pos = clouds(4, 5)
    settings = {"affinity": row_affinity, "floor": 0.0}
    flat = MeanShift(lambda distance, temperature: distance.new_zeros(()).expand_as(distance), **settings)
    copied = MeanShift(lambda distance, temperature: torch.zeros_like(distance), **settings)
    assert_close(*(drift_field(gen, pos, temperature=TAU, field=field) for field in (flat, copied)))
