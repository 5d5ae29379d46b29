"""What S and lambda are means over: the batch, a problem, a sample; and the gain, which scales what they normalised."""

import math
from dataclasses import dataclass

import pytest
import torch
from plain_formulas import official_drift_loss, plain_distance

from drifting import DriftLoss, MeanShift
from drifting.learned_temperature import LearnedTemperature
from drifting.scales import Extent

EVERY = pytest.mark.parametrize("extent", Extent, ids=lambda extent: extent.value)


@dataclass
class Batch:
    """Problems of very different sizes, and samples of one problem at different distances from the rest."""

    gen: torch.Tensor
    pos: torch.Tensor
    neg: torch.Tensor
    gen_weight: torch.Tensor
    pos_weight: torch.Tensor
    neg_weight: torch.Tensor


def batch(num_gen: int = 4, width: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)[:, None, None]

    def cloud(count: int, shift: float) -> torch.Tensor:
        return size * (torch.randn(3, count, width, generator=rng, dtype=torch.float64) + shift)

    def weight(count: int) -> torch.Tensor:
        return 0.2 + 2 * torch.rand(3, count, generator=rng, dtype=torch.float64)

    gen = cloud(num_gen, 0.0)
    gen[:, 0] *= 4
    return Batch(gen, cloud(5, 0.7), cloud(2, -0.3), weight(num_gen), weight(5), weight(2))


def terms_and_gradient(loss: DriftLoss, **given: torch.Tensor | None):
    gen = given.pop("gen").clone().requires_grad_()
    terms = loss.terms(gen, **given)
    terms.loss.sum().backward()
    return terms, gen.grad


def rms(x: torch.Tensor, *dims: int) -> torch.Tensor:
    return x.square().mean(dims).sqrt()


# A batch.


def test_the_default_is_the_batch():
    given = batch()
    plain, gradient = terms_and_gradient(DriftLoss(), **vars(given))
    named = DriftLoss(feature_extent=Extent.BATCH, drift_extent=Extent.BATCH, gain=1.0)
    same, same_gradient = terms_and_gradient(named, **vars(given))
    assert torch.equal(plain.drift, same.drift) and torch.equal(plain.loss, same.loss)
    assert torch.equal(gradient, same_gradient)
    official = official_drift_loss(**vars(given), temperatures=(0.02, 0.05, 0.2))
    torch.testing.assert_close(plain.drift, official.drift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.loss.detach(), official.loss, rtol=1e-9, atol=0)


@EVERY
def test_what_is_reported_is_of_the_batch_whatever_the_extent(extent):
    """`scale` and `drift_rms` are figures to watch, not the divisors."""
    given = batch()
    plain = DriftLoss().terms(**vars(given))
    terms = DriftLoss(feature_extent=extent, drift_extent=extent).terms(**vars(given))
    torch.testing.assert_close(terms.scale, plain.scale, rtol=1e-12, atol=0)
    bare = DriftLoss((0.2,), feature_extent=extent, normalize_drift=False).terms(**vars(given))
    other = DriftLoss((0.2,), feature_extent=extent, drift_extent=extent).terms(**vars(given))
    torch.testing.assert_close(bare.drift_rms, rms(bare.drift, 0, 1, 2)[None], rtol=1e-12, atol=0)
    torch.testing.assert_close(other.drift_rms, bare.drift_rms, rtol=1e-12, atol=0)


# A problem.


@pytest.mark.parametrize("normalize_drift", [True, False])
@pytest.mark.parametrize("drift_extent", [Extent.PROBLEM, Extent.SAMPLE], ids=lambda extent: extent.value)
@pytest.mark.parametrize("feature_extent", [Extent.PROBLEM, Extent.SAMPLE], ids=lambda extent: extent.value)
def test_a_problem_alone_is_as_in_a_batch(feature_extent, drift_extent, normalize_drift):
    given = batch()
    loss = DriftLoss(normalize_drift=normalize_drift, feature_extent=feature_extent, drift_extent=drift_extent)
    terms, gradient = terms_and_gradient(loss, **vars(given))
    for b in range(3):
        alone, alone_gradient = terms_and_gradient(loss, **{name: x[b : b + 1] for name, x in vars(given).items()})
        torch.testing.assert_close(terms.drift[b], alone.drift[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(terms.loss[b], alone.loss[0], rtol=1e-10, atol=0)
        bound = 1e-12 * float(alone_gradient.abs().max())
        torch.testing.assert_close(gradient[b], alone_gradient[0], rtol=1e-10, atol=bound)


def test_in_a_batch_a_problem_sees_the_others():
    given = batch()
    together = DriftLoss().terms(**vars(given)).drift[:1]
    alone = DriftLoss().terms(**{name: x[:1] for name, x in vars(given).items()}).drift
    assert (together - alone).abs().max() > 0.1


def test_a_problem_is_that_of_the_batch_when_it_is_the_batch():
    given = {name: x[1:2] for name, x in vars(batch()).items()}
    problem = DriftLoss(feature_extent=Extent.PROBLEM, drift_extent=Extent.PROBLEM)
    one, gradient = terms_and_gradient(problem, **given)
    other, other_gradient = terms_and_gradient(DriftLoss(), **given)
    torch.testing.assert_close(one.drift, other.drift, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-12, atol=1e-14)


def test_problems_do_not_see_the_size_of_their_samples():
    """By a scale of their own, problems of 0.1 and of 30 are evened out."""
    given = vars(batch()) | {"self_ref": batch().gen.flip(1) * 0.9}  # self distances would be the clip, not a length
    loss = DriftLoss(feature_extent=Extent.PROBLEM, drift_extent=Extent.PROBLEM)
    size = torch.tensor([7.0, 0.3, 2.0], dtype=torch.float64)[:, None, None]
    scaled = {name: size * given[name] for name in ("gen", "pos", "neg", "self_ref")}
    one, gradient = terms_and_gradient(loss, **given)
    other, other_gradient = terms_and_gradient(loss, **given | scaled)
    torch.testing.assert_close(one.drift, other.drift, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient, size * other_gradient, rtol=1e-9, atol=1e-11)


# A sample.


def plain_sample_drift(
    given: Batch, temperature: float, *, second_batch: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """V_i of coordinates that are divided by S_i, and S_i, sample by sample; [B, G, D] and [B, G]."""
    own = given.gen if second_batch is None else second_batch
    num_own, num_neg = own.shape[1], given.neg.shape[1]
    refs = torch.cat([own, given.neg, given.pos], dim=1)
    weight = torch.cat([given.gen_weight, given.neg_weight, given.pos_weight], dim=1)
    distance = plain_distance(given.gen, refs).clamp(min=1e-4)
    batch, num_gen, width = given.gen.shape
    scale = torch.zeros(batch, num_gen, dtype=torch.float64)
    logit = torch.zeros_like(distance)
    for b in range(batch):
        for i in range(num_gen):
            seen = [j for j in range(refs.shape[1]) if not num_own <= j < num_own + num_neg]
            if second_batch is None:
                seen.remove(i)
            total = sum(weight[b, j] * distance[b, i, j] for j in seen)
            scale[b, i] = total / sum(weight[b, j] for j in seen)
            logit[b, i] = -distance[b, i] / scale[b, i] / temperature
            if second_batch is None:
                logit[b, i, i] = -math.inf
    affinity = (logit.softmax(-1) * logit.softmax(-2)).sqrt().clamp(min=1e-3) * weight[:, None]
    negative, positive = affinity[..., : num_own + num_neg], affinity[..., num_own + num_neg :]
    coefficient = torch.cat([-negative * positive.sum(-1, keepdim=True), positive * negative.sum(-1, keepdim=True)], -1)
    drift = (coefficient[..., None] * (refs[:, None] - given.gen[:, :, None])).sum(2)
    unit = scale / math.sqrt(width)
    return drift / unit[..., None], unit


@pytest.mark.parametrize("with_second_batch", [False, True], ids=["own negatives", "second batch"])
def test_scale_of_a_sample_is_its_mean_distance_to_other_samples_and_to_positives(with_second_batch):
    given = batch()
    ref = given.gen.flip(1) * 0.9 + 0.1 if with_second_batch else None
    loss = DriftLoss((0.3,), normalize_drift=False, feature_extent=Extent.SAMPLE)
    terms, gradient = terms_and_gradient(loss, **vars(given), self_ref=ref)
    drift, unit = plain_sample_drift(given, 0.3, second_batch=ref)
    torch.testing.assert_close(terms.drift, drift, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(terms.loss.detach(), drift.square().mean((1, 2)), rtol=1e-9, atol=0)
    expected = -2 * drift / (drift[0].numel() * unit[..., None])
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def test_extra_negatives_do_not_move_the_scale_of_a_sample():
    given = vars(batch())
    field = MeanShift(floor=0.0)
    loss = DriftLoss((0.3,), field, normalize_drift=False, feature_extent=Extent.SAMPLE)
    near, near_gradient = terms_and_gradient(loss, **given)
    far, far_gradient = terms_and_gradient(loss, **given | {"neg": given["neg"] + 200})
    for terms, gradient in ((near, near_gradient), (far, far_gradient)):
        # The unit, from the gradient -2 V / (G D S_i).
        unit = -2 * terms.drift / (12 * gradient)
        torch.testing.assert_close(unit[..., 0], plain_sample_drift(batch(), 0.3)[1], rtol=1e-8, atol=0)


def test_a_lone_sample_takes_its_scale_from_second_batch_and_positives():
    given = batch(num_gen=1)
    ref = batch().gen
    weights = vars(given) | {"gen_weight": batch().gen_weight}
    terms = DriftLoss((0.3,), feature_extent=Extent.SAMPLE, drift_extent=Extent.SAMPLE).terms(**weights, self_ref=ref)
    assert terms.drift.isfinite().all()
    torch.testing.assert_close(rms(terms.drift, 2), torch.ones(3, 1, dtype=torch.float64), rtol=1e-12, atol=0)


# Lambda.


@pytest.mark.parametrize("temperature", [0.2, 1.0])  # at smaller ones a far sample has no drift to speak of
@EVERY
def test_drift_has_unit_rms_over_its_extent(extent, temperature):
    drift = DriftLoss((temperature,), drift_extent=extent).terms(**vars(batch())).drift
    over_samples = rms(drift, 2)
    over_problems = rms(drift, 1, 2)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(rms(drift, 0, 1, 2), one, rtol=1e-12, atol=0)
    if extent is not Extent.BATCH:
        torch.testing.assert_close(over_problems, one.expand(3), rtol=1e-12, atol=0)
    else:
        assert (over_problems - 1).abs().max() > 0.1
    if extent is Extent.SAMPLE:
        torch.testing.assert_close(over_samples, one.expand(3, 4), rtol=1e-12, atol=0)
    else:
        assert (over_samples - 1).abs().max() > 0.1


@EVERY
def test_each_temperature_is_normalised_by_itself(extent):
    given = vars(batch())
    parts = [DriftLoss((tau,), drift_extent=extent).terms(**given).drift for tau in (0.05, 0.2, 1.0)]
    together = DriftLoss((0.05, 0.2, 1.0), drift_extent=extent).terms(**given).drift
    torch.testing.assert_close(together, sum(parts), rtol=1e-11, atol=1e-12)


@EVERY
def test_the_direction_of_a_sample_does_not_depend_on_the_extent(extent):
    given = vars(batch())
    bare = DriftLoss((0.2,), normalize_drift=False).terms(**given).drift
    drift = DriftLoss((0.2,), drift_extent=extent).terms(**given).drift
    cosine = torch.nn.functional.cosine_similarity(bare, drift, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-12, atol=0)


@EVERY
def test_a_sample_without_drift_stays_without(extent):
    """Identical batches: nothing to normalise, and nothing is blown up."""
    same = torch.full((2, 4, 3), 5.0, dtype=torch.float64)
    terms, gradient = terms_and_gradient(DriftLoss(feature_extent=extent, drift_extent=extent), gen=same, pos=same)
    assert not terms.drift.any() and not gradient.any()


# Gain, and what may be set between calls.


@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0])
@EVERY
def test_gain_is_a_factor_on_the_drift(extent, gain):
    given = vars(batch())
    plain, gradient = terms_and_gradient(DriftLoss(drift_extent=extent), **given)
    scaled, scaled_gradient = terms_and_gradient(DriftLoss(drift_extent=extent, gain=gain), **given)
    torch.testing.assert_close(scaled.drift, gain * plain.drift, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(scaled.loss, gain**2 * plain.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_gradient, gain * gradient, rtol=1e-12, atol=1e-14)
    assert torch.equal(scaled.drift_rms, plain.drift_rms) and torch.equal(scaled.scale, plain.scale)


@pytest.mark.parametrize("normalize_drift", [True, False])
def test_settings_may_change_between_calls(normalize_drift):
    given = vars(batch())
    loss = DriftLoss((0.1, 0.4), normalize_drift=normalize_drift)
    loss.terms(**given)
    loss.temperatures = [0.3]
    loss.gain = 2
    assert loss.temperatures == (0.3,) and loss.gain == 2.0
    fresh = DriftLoss((0.3,), gain=2.0, normalize_drift=normalize_drift)
    assert torch.equal(loss.terms(**given).drift, fresh.terms(**given).drift)
    assert loss.terms(**given).drift_rms.shape == (1,)


@pytest.mark.parametrize("temperatures", [(), (0.0,), (0.1, -1.0), (math.nan,), [math.inf]])
def test_a_wrong_temperature_is_refused_and_leaves_the_loss_as_it_was(temperatures):
    loss = DriftLoss((0.1,))
    with pytest.raises(ValueError, match=r"temperatures must be finite and > 0, and at least one, got \("):
        loss.temperatures = temperatures
    assert loss.temperatures == (0.1,)


@pytest.mark.parametrize("gain", [-1.0, math.nan, math.inf])
def test_a_wrong_gain_is_refused_and_leaves_the_loss_as_it_was(gain):
    loss = DriftLoss(gain=0.5)
    with pytest.raises(ValueError, match=f"gain must be finite and >= 0, got {gain}"):
        loss.gain = gain
    assert loss.gain == 0.5
    with pytest.raises(ValueError, match="gain must be finite"):
        DriftLoss(gain=gain)


def test_a_learned_temperature_comes_and_goes_with_the_setting():
    loss = DriftLoss((0.1,))
    assert not list(loss.parameters())
    learned = LearnedTemperature(0.3)
    loss.temperatures = (0.1, learned)
    assert [id(p) for p in loss.parameters()] == [id(learned.log_temperature)]
    given = vars(batch())
    numbers = DriftLoss((0.1, learned().item())).terms(**given).drift
    torch.testing.assert_close(loss.terms(**given).drift, numbers, rtol=1e-6, atol=1e-6)  # tau is float32
    loss.temperatures = (0.1,)
    assert not list(loss.parameters()) and not loss.state_dict()
