"""Arithmetic: float32 is enough wherever the features lie, autocast changes nothing, and nothing overflows."""

import pytest
import torch
from degenerate_batches import DEGENERATE, cloud

from drifting import DriftLoss, MeanShift, Sinkhorn, drift_field, gaussian, row_affinity, unnormalized_affinity

FIELDS = {
    "mean_shift": MeanShift(),
    "printed": MeanShift(floor=0.0),
    "row": MeanShift(affinity=row_affinity),
    "bare": MeanShift(affinity=unnormalized_affinity),
    "gaussian": MeanShift(kernel=gaussian, floor=0.0),
    "sinkhorn": Sinkhorn(),
}
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())


def gradient(gen: torch.Tensor, *others: torch.Tensor, **named) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each problem and gradient of their sum; `field` is DriftLoss's, other names are those of its call."""
    settings = {"field": named.pop("field")} if "field" in named else {}
    x = gen.clone().requires_grad_()
    loss = DriftLoss(**settings).terms(x, *others, **named).loss
    loss.sum().backward()
    return loss.detach(), x.grad


@every_field
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_equals_float64_wherever_the_features_lie(field, offset):
    """Dot products of uncentred features at offset 1000 would have no correct digit left."""
    blocks = [cloud(6, width=64) + offset, cloud(8, width=64) + offset, cloud(3, width=64) + offset]
    ref = cloud(7, width=64) + offset
    loss, grad = gradient(*blocks, self_ref=ref, field=field)
    exact_loss, exact_grad = gradient(*(b.double() for b in blocks), self_ref=ref.double(), field=field)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-5, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0, atol=2e-4 * float(exact_grad.abs().max()))


def test_problems_far_from_each_other_are_centred_each_on_its_own():
    offset = torch.tensor([0.0, 3000.0])[:, None, None]
    gen, pos = cloud(6) + offset, cloud(8) + offset
    _, grad = gradient(gen, pos)
    _, exact = gradient(gen.double(), pos.double())
    torch.testing.assert_close(grad.double(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


def test_self_distances_do_not_bias_the_scale_in_float32():
    """Dot products leave sqrt(rounding) of them, 1e-3 of a typical distance, where the clip is 1e-4."""
    gen, pos = cloud(3, width=256), cloud(2, width=256)
    terms = DriftLoss().terms(gen, pos)
    exact = DriftLoss().terms(gen.double(), pos.double())
    torch.testing.assert_close(terms.scale.double(), exact.scale, rtol=1e-6, atol=0)


def test_a_collapsed_batch_at_the_origin_has_the_clipped_distance():
    same = torch.zeros(1, 4, 8)
    assert DriftLoss().terms(same, same).scale.item() == pytest.approx(1e-4, rel=1e-6)


@every_field
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_bit(field, dtype):
    blocks = [cloud(n).to(dtype) for n in (6, 8, 3)]
    ref = cloud(7).to(dtype)
    loss, grad = gradient(*blocks, self_ref=ref, field=field)
    plain = drift_field(*blocks, self_ref=ref, field=field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_autocast, grad_autocast = gradient(*blocks, self_ref=ref, field=field)
        plain_autocast = drift_field(*blocks, self_ref=ref, field=field)
    assert loss_autocast.dtype == torch.float32
    assert torch.equal(loss, loss_autocast)
    assert torch.equal(grad, grad_autocast)
    assert torch.equal(plain, plain_autocast)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    blocks = [cloud(n).to(dtype) for n in (6, 8, 3)]
    loss, grad = gradient(*blocks)
    wide_loss, wide_grad = gradient(*(b.float() for b in blocks))
    assert torch.equal(loss, wide_loss)
    assert torch.equal(grad, wide_grad.to(dtype))


def test_references_of_another_float_type_are_taken_to_gens():
    gen, pos, neg = cloud(6), cloud(8), cloud(3)
    loss, grad = gradient(gen, pos.double(), neg.double(), neg_weight=torch.ones(2, dtype=torch.float64))
    same_loss, same_grad = gradient(gen, pos, neg)
    assert torch.equal(loss, same_loss)
    assert torch.equal(grad, same_grad)


@every_field
@pytest.mark.parametrize("make", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("normalize_drift", [True, False])
def test_degenerate_batches_stay_finite(field, make, normalize_drift):
    gen, pos, neg, ref = (make(n) for n in (6, 8, 3, 7))
    for self_ref in (ref, None):
        if self_ref is None and isinstance(field, Sinkhorn):
            continue
        x = gen.clone().requires_grad_()
        terms = DriftLoss(field=field, normalize_drift=normalize_drift).terms(x, pos, neg, self_ref=self_ref)
        terms.loss.sum().backward()
        figures = [getattr(terms.diagnostics, name) for name in terms.diagnostics.__dataclass_fields__]
        for value in (terms.loss, terms.drift, terms.scale, terms.drift_rms, x.grad, *figures):
            assert torch.isfinite(value).all()
        assert torch.isfinite(drift_field(gen, pos, neg, self_ref=self_ref, field=field)).all()


@every_field
def test_smallest_problems(field):
    one = torch.zeros(1, 1, 1)
    x = one.clone().requires_grad_()
    terms = DriftLoss(field=field).terms(x, one + 1, self_ref=one - 0.5)
    terms.loss.sum().backward()
    assert torch.isfinite(x.grad).all()
    # The positive lies above, the second batch below: the sample rises.
    assert x.grad.item() < 0


def test_identical_batches_have_no_drift():
    same = torch.full((1, 4, 8), 3.0)
    loss, grad = gradient(same, same)
    assert not loss.any()
    assert not grad.any()


def test_gaussian_and_low_temperature_do_not_underflow_to_nan():
    gen, pos = cloud(6), cloud(8)
    for temperature in (1e-6, 1e6):
        for field in FIELDS.values():
            v = drift_field(gen, pos, self_ref=cloud(7), temperature=temperature, field=field)
            assert torch.isfinite(v).all()
