"""What every field but MeanShift, which has its own file, must obey: symmetry, equivariance, arithmetic, interface."""

import pytest
import torch
from degenerate_batches import DEGENERATE, cloud
from field_formulas import ask, clouds, some_weights

from drifting import DriftLoss, Sinkhorn, drift_field, gaussian, guidance_weight, laplacian
from drifting.fields import (
    Columns,
    KernelGradient,
    Mmd,
    Sharp,
    VelocityGuidance,
    chi_squared_gen_data,
    distance_cost,
    kl_data_gen,
)
from drifting.kernels import InverseMultiquadric, Matern

TAU = 0.7
ANTISYMMETRIC = {
    "kernel_gradient_laplacian": KernelGradient(laplacian),
    "kernel_gradient_gaussian": KernelGradient(gaussian),
    "kernel_gradient_imq": KernelGradient(InverseMultiquadric(0.5)),
    "sharp_laplacian": Sharp(laplacian),
    "sharp_matern": Sharp(Matern(2.5)),
    "sharp_imq": Sharp(InverseMultiquadric(2.0)),
    "mmd_laplacian": Mmd(laplacian),
    "mmd_gaussian": Mmd(gaussian),
    "sinkhorn": Sinkhorn(30),
    "sinkhorn_tolerance": Sinkhorn(100, tolerance=1e-3),
    "sinkhorn_distance": Sinkhorn(30, distance_cost),
}
FIELDS = ANTISYMMETRIC | {
    "kl_data_gen": KernelGradient(gaussian, kl_data_gen),
    "chi_squared": KernelGradient(Matern(1.5), chi_squared_gen_data),
    "guided_sinkhorn": VelocityGuidance(Sinkhorn(30)),
    "guided_kernel_gradient": VelocityGuidance(KernelGradient()),
}
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())


def needs_second_batch(field) -> bool:
    return isinstance(getattr(field, "field", field), Sinkhorn)


density_fields = pytest.mark.parametrize(
    "field", [pytest.param(f, id=name) for name, f in FIELDS.items() if not needs_second_batch(f)]
)


@pytest.mark.parametrize("field", ANTISYMMETRIC.values(), ids=ANTISYMMETRIC.keys())
def test_swapping_data_and_second_batch_negates_the_drift(field):
    x, p, q = clouds(4, 5, 6)
    p_weight, q_weight = some_weights(5, 6)
    forward = drift_field(x, p, self_ref=q, pos_weight=p_weight, gen_weight=q_weight, temperature=TAU, field=field)
    backward = drift_field(x, q, self_ref=p, pos_weight=q_weight, gen_weight=p_weight, temperature=TAU, field=field)
    assert forward.abs().max() > 1e-3
    torch.testing.assert_close(forward, -backward, rtol=1e-10, atol=1e-13)


@every_field
def test_no_drift_where_data_and_second_batch_agree(field):
    x, p = clouds(4, 5)
    drift = drift_field(x, p, self_ref=p.flip(1), temperature=TAU, field=field)
    torch.testing.assert_close(drift, torch.zeros_like(x), rtol=0, atol=1e-12)


def moved_and_still(field, change):
    """Drift of changed samples and of the samples, with everything that a field can be given."""
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    weights = dict(zip(("pos_weight", "neg_weight", "gen_weight"), some_weights(5, 3, 6), strict=True))
    named = {"temperature": TAU, "field": field, **weights}
    moved = drift_field(change(gen), change(pos), change(neg), self_ref=change(ref), **named)
    return moved, drift_field(gen, pos, neg, self_ref=ref, **named)


@every_field
def test_translation_does_not_change_the_drift(field):
    shift = torch.tensor([100.0, -7.0, 3.0], dtype=torch.float64)
    moved, still = moved_and_still(field, lambda x: x + shift)
    torch.testing.assert_close(moved, still, rtol=1e-9, atol=1e-10)


@every_field
def test_rotation_turns_the_drift_along(field):
    rng = torch.Generator().manual_seed(9)
    r = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0]
    turned, still = moved_and_still(field, lambda x: x @ r)
    torch.testing.assert_close(turned, still @ r, rtol=1e-9, atol=1e-10)


@density_fields
def test_a_change_of_unit_scales_the_drift(field):
    """V and the temperature are lengths: in units half as large both are twice the number."""
    gen, pos, ref = clouds(4, 5, 6)
    drift = drift_field(gen, pos, self_ref=ref, temperature=TAU, field=field)
    doubled = drift_field(2 * gen, 2 * pos, self_ref=2 * ref, temperature=2 * TAU, field=field)
    torch.testing.assert_close(doubled, 2 * drift, rtol=1e-9, atol=1e-11)


@every_field
def test_order_of_references_does_not_matter_and_order_of_generated_and_problems_is_kept(field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6, batch=3)
    given = drift_field(gen, pos, neg, self_ref=ref, temperature=TAU, field=field)
    problem, row = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
    refs = [x[problem].flip(1) for x in (pos, neg, ref)]
    moved = drift_field(gen[problem][:, row], *refs[:2], self_ref=refs[2], temperature=TAU, field=field)
    torch.testing.assert_close(moved, given[problem][:, row], rtol=1e-9, atol=1e-11)
    for b in range(3):
        one = [x[b : b + 1] for x in (gen, pos, neg, ref)]
        alone = drift_field(*one[:3], self_ref=one[3], temperature=TAU, field=field)
        torch.testing.assert_close(alone[0], given[b], rtol=1e-9, atol=1e-11)


# The interface.


@every_field
def test_distances_are_left_alone_and_coefficients_are_new(field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    distances = []

    def spy(distance, columns, **named):
        before = distance.clone()
        coupling = field(distance, columns, **named)
        distances.append(torch.equal(before, distance))
        assert coupling.coefficients.untyped_storage().data_ptr() != distance.untyped_storage().data_ptr()
        return coupling

    ask(spy, gen, pos, neg, self_ref=ref)
    assert distances == [True]


@every_field
def test_contact_is_per_problem_and_only_on_demand(field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    coupling = ask(field, gen, pos, neg, self_ref=ref)
    silent = ask(field, gen, pos, neg, self_ref=ref, with_contact=False)
    assert silent.contact is None and torch.equal(silent.coefficients, coupling.coefficients)
    for name in coupling.contact.__dataclass_fields__:
        value = getattr(coupling.contact, name)
        assert value is None or value.shape == (2,)
    if coupling.balanced:
        rows = coupling.coefficients.sum(-1)
        torch.testing.assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-12)


@every_field
def test_temperature_may_be_a_tensor(field):
    gen, pos, neg, ref = clouds(4, 5, 3, 6)
    number = ask(field, gen, pos, neg, self_ref=ref, temperature=TAU).coefficients
    tensor = ask(field, gen, pos, neg, self_ref=ref, temperature=torch.tensor(TAU, dtype=torch.float64)).coefficients
    torch.testing.assert_close(tensor, number, rtol=1e-12, atol=1e-14)


@every_field
def test_nothing_but_a_tolerance_waits_for_the_device(field):
    """Tensors on the meta device have no values: reading one, which is what would wait, raises."""
    weight, temperature = torch.empty(2, 14, device="meta"), torch.empty((), device="meta")
    for num_self, self_is_gen in ((6, False), (4, True)):
        if self_is_gen and needs_second_batch(field):
            continue
        num_refs = num_self + 3 + 5
        columns = Columns(num_self, 3, 5, self_is_gen, weight[:, :num_refs], slice(0, num_refs))
        distance = torch.empty(2, 4, num_refs, device="meta")
        if getattr(field, "tolerance", 0):
            with pytest.raises(RuntimeError, match="meta"):
                field(distance, columns, temperature=temperature)
        else:
            assert field(distance, columns, temperature=temperature).coefficients.shape == (2, 4, num_refs)


@every_field
def test_fields_are_frozen_readable_values(field):
    assert hash(field) == hash(field) and repr(field).startswith(type(field).__name__)
    with pytest.raises(AttributeError):
        field.kernel = field.field = laplacian


# Arithmetic.


@every_field
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_equals_float64(field, temperature, offset):
    """Sinkhorn's plan is compared at temperatures at which it is smooth: its cost of 16 dimensions is about 16."""
    temperature *= 16 if needs_second_batch(field) else 1
    # What float32 cannot hold of an offset is lost here, before the field is asked.
    samples = [cloud(n) + offset for n in (6, 8, 3, 7)]
    single, exact = (
        drift_field(*blocks[:3], self_ref=blocks[3], temperature=temperature, field=field)
        for blocks in (samples, [x.double() for x in samples])
    )
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=3e-4 * float(exact.abs().max()) + 1e-30)


@density_fields
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_a_collapsed_batch_flees_itself_without_noise(field, spread):
    """Distances of 1e-4 of the largest are noise in float32; a pull of tau / d would make the drift noise as well."""
    gen, pos = cloud(1) + spread * cloud(6), cloud(8)
    single, exact = (
        drift_field(*blocks, temperature=4.0, field=field) for blocks in ((gen, pos), (gen.double(), pos.double()))
    )
    # One sample's share in the drift, the mean of the batch being the pull to the data.
    own, exact_own = (v - v.mean(1, keepdim=True) for v in (single.double(), exact))
    assert own.norm() < 1.2 * exact_own.norm() + 1e-4 * exact.norm()
    torch.testing.assert_close(single.double().mean(1), exact.mean(1), rtol=0, atol=2e-3 * float(exact.abs().max()))


@every_field
@pytest.mark.parametrize("make", [cloud, *DEGENERATE.values()], ids=["plain", *DEGENERATE])
def test_degenerate_batches_stay_finite(field, make):
    gen, pos, neg, ref = (make(n) for n in (6, 8, 3, 7))
    weight = guidance_weight(torch.tensor([1.0, 2.5]), 7, 3)[: len(gen)]
    for self_ref in (ref, None):
        if self_ref is None and needs_second_batch(field):
            continue
        for temperature in (1e-6, 1e-3, 1.0, 1e3, 1e6):
            drift = drift_field(
                gen, pos, neg, self_ref=self_ref, neg_weight=weight, temperature=temperature, field=field
            )
            assert torch.isfinite(drift).all(), temperature
        for normalize in (True, False):
            x = gen.clone().requires_grad_()
            loss = DriftLoss((0.02, 0.5), field, normalize_features=True, normalize_drift=normalize)
            terms = loss.terms(x, pos, neg, self_ref=self_ref, neg_weight=weight)
            terms.loss.sum().backward()
            figures = [getattr(terms.diagnostics, name) for name in terms.diagnostics.__dataclass_fields__]
            for value in (terms.loss, terms.drift, terms.drift_rms, x.grad, *figures):
                assert torch.isfinite(value).all()


@every_field
def test_identical_samples_have_no_drift(field):
    same = torch.full((2, 4, 8), 3.0)
    for temperature in (1e-6, 1.0, 1e6):
        drift = drift_field(same, same, self_ref=same, temperature=temperature, field=field)
        assert not drift.any()
