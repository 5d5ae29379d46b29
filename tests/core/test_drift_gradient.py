"""The closed-form gradient is the gradient of the frozen-target loss, and of nothing else."""

import pytest
import torch

from drifting import DriftLoss, DriftTerms, MeanShift, Sinkhorn, drift_field


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, n, 3, generator=rng, dtype=torch.float64).to(dtype) for n in (4, 5, 2))


def frozen_target_loss(x: torch.Tensor, at: torch.Tensor, terms: DriftTerms) -> torch.Tensor:
    """Eq. 26 as a function of x, its target frozen at x = `at`; [B]."""
    unit = (terms.scale / at.shape[-1] ** 0.5).clamp(min=1e-3)
    return (x / unit - (at / unit + terms.drift)).square().mean(dim=(1, 2))


@pytest.mark.parametrize("problem_weight", [[0.5, 0.5], [2.0, -0.7]], ids=["mean", "any weighted sum of problems"])
def test_gradient_equals_central_differences_of_the_frozen_target_loss(problem_weight):
    gen, pos, neg = batch()
    weight = torch.tensor(problem_weight, dtype=torch.float64)
    x = gen.clone().requires_grad_()
    terms = DriftLoss().terms(x, pos, neg)
    (weight * terms.loss).sum().backward()

    torch.testing.assert_close(frozen_target_loss(gen, gen, terms), terms.loss.detach(), rtol=1e-12, atol=0)
    step = 1e-5
    numeric = torch.zeros_like(gen)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in gen.shape)).tolist():
        ahead, behind = gen.clone(), gen.clone()
        ahead[tuple(index)] += step
        behind[tuple(index)] -= step
        difference = frozen_target_loss(ahead, gen, terms) - frozen_target_loss(behind, gen, terms)
        numeric[tuple(index)] = (weight * difference).sum() / (2 * step)
    torch.testing.assert_close(x.grad, numeric, rtol=1e-6, atol=1e-8 * float(numeric.abs().max()))


def test_forward_is_the_mean_over_problems():
    gen, pos, neg = batch()
    loss = DriftLoss()
    x, y = gen.clone().requires_grad_(), gen.clone().requires_grad_()
    value = loss(x, pos, neg)
    value.backward()
    loss.terms(y, pos, neg).loss.mean().backward()
    assert value.ndim == 0
    assert torch.equal(x.grad, y.grad)


def test_without_feature_normalisation_the_unit_is_one():
    gen, pos, _ = batch()
    x = gen.clone().requires_grad_()
    terms = DriftLoss(normalize_features=False).terms(x, pos)
    terms.loss.sum().backward()
    torch.testing.assert_close(x.grad, -2 * terms.drift / 12, rtol=1e-13, atol=0)


def test_gradient_flows_on_through_the_network_that_made_the_samples():
    gen, pos, _ = batch()
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    made = gen + shift
    made.retain_grad()
    DriftLoss()(made, pos).backward()
    torch.testing.assert_close(shift.grad, made.grad.sum((0, 1)))
    assert shift.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_has_the_samples_type_and_the_loss_at_least_float32(dtype):
    gen, pos, neg = batch(dtype)
    gen.requires_grad_()
    terms = DriftLoss().terms(gen, pos, neg)
    terms.loss.sum().backward()
    assert gen.grad.dtype == dtype
    assert terms.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert drift_field(gen, pos).dtype == dtype


@pytest.mark.parametrize("field", [MeanShift(), Sinkhorn()], ids=["mean_shift", "sinkhorn"])
def test_nothing_but_gen_receives_a_gradient(field):
    gen, pos, neg = (block.requires_grad_() for block in batch())
    ref = gen.detach().flip(1).requires_grad_()
    weights = {
        f"{name}_weight": torch.ones(2, dtype=torch.float64, requires_grad=True) for name in ("gen", "pos", "neg")
    }
    terms = DriftLoss(field=field).terms(gen, pos, neg, self_ref=ref, **weights)
    terms.loss.sum().backward()
    assert gen.grad is not None
    for other in (pos, neg, ref, *weights.values()):
        assert other.grad is None
    diagnostics = [getattr(terms.diagnostics, name) for name in terms.diagnostics.__dataclass_fields__]
    assert not any(t.requires_grad for t in (terms.drift, terms.scale, terms.drift_rms, *diagnostics))
    assert not drift_field(gen, pos).requires_grad


def test_inputs_are_left_as_they_were():
    blocks = batch()
    copies = [block.clone() for block in blocks]
    DriftLoss().terms(*blocks)
    drift_field(*blocks)
    for block, copy in zip(blocks, copies, strict=True):
        assert torch.equal(block, copy)


def test_the_frozen_target_refuses_a_second_derivative():
    """Zero, which autograd would take it for, is wrong."""
    gen, pos, _ = batch()
    gen.requires_grad_()
    (first,) = torch.autograd.grad(DriftLoss()(gen, pos), gen, create_graph=True)
    (plain,) = torch.autograd.grad(DriftLoss()(gen, pos), gen)
    assert torch.equal(first, plain)
    with pytest.raises(RuntimeError, match=r"the drifting loss has no second derivative.*create_graph=True"):
        first.square().sum().backward()


def test_samples_need_no_gradient_to_be_judged():
    gen, pos, _ = batch()
    assert not DriftLoss()(gen, pos).requires_grad


def test_descending_the_loss_moves_samples_along_the_drift():
    gen, pos, _ = batch()
    gen.requires_grad_()
    terms = DriftLoss().terms(gen, pos)
    terms.loss.sum().backward()
    cosine = torch.nn.functional.cosine_similarity(-gen.grad.flatten(), terms.drift.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-12)
