"""The kernels of a GPU, interpreted (tests/conftest.py): the numbers of the plain walk in double precision."""

import copy

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("there is a GPU: tests/cuda runs the kernels on it", allow_module_level=True)
pytest.importorskip("triton", reason="this build of torch has no Triton")

import drifting.engine
from drifting import DriftLoss, MeanShift, drift_field, gaussian
from drifting.arguments import DriftInputs
from drifting.fused import fits as fits_module
from drifting.fused import kernels
from drifting.fused import walk as fused
from drifting.learned_temperature import LearnedTemperature
from drifting.scales import Extent

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # of the interpreter: log(0) is meant


@pytest.fixture(autouse=True)
def fused_everywhere(monkeypatch):
    """The fused walk for everything that it serves, but for the device."""
    counted = []

    class Counted(fused.FusedWalk):
        def __init__(self, *arguments):
            counted.append(arguments)
            super().__init__(*arguments)

    def walk_over(sets, field, num_temperatures, normalization):
        kind = Counted if sets[0].dtype == torch.float32 else drifting.engine.PlainWalk
        return kind(sets, num_temperatures, normalization)

    monkeypatch.setattr(drifting.engine, "walk_over", walk_over)
    yield counted
    assert counted, "nothing was computed by the kernels"


def drawn(batch=3, gen=5, pos=4, neg=3, ref=0, width=40, weighted=True, seed=0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)

    def block(count, shift):
        return torch.randn(batch, count, width, generator=source, dtype=torch.float64) + shift if count else None

    def weight(count):
        return 2 * torch.rand(batch, count, generator=source, dtype=torch.float64) if count and weighted else None

    given = {"gen": block(gen, 3.0), "pos": block(pos, 3.5), "neg": block(neg, 2.5), "self_ref": block(ref, 3.0)}
    given |= {"pos_weight": weight(pos), "neg_weight": weight(neg), "gen_weight": weight(ref or gen)}
    return {name: x.float().double() for name, x in given.items() if x is not None}


def terms_of(loss, given, dtype):
    given = {name: x.to(dtype).clone() for name, x in given.items()}
    gen = given.pop("gen").requires_grad_()
    terms = loss.terms(gen, given.pop("pos"), given.pop("neg", None), **given)
    terms.loss.mean().backward()
    return terms, gen.grad


def assert_same(ours, theirs, tolerance=2e-5):
    for name, a, b in pairs(ours, theirs):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max(), name


def pairs(ours, theirs):
    for name in ("loss", "drift", "scale", "drift_rms"):
        yield name, getattr(ours[0], name).detach(), getattr(theirs[0], name).detach()
    figures = [terms.diagnostics for terms, _ in (ours, theirs)]
    yield "contact", *(torch.stack([f.positive_mass, f.negative_mass, f.floor_share]) for f in figures)
    yield "gradient", ours[1], theirs[1]


SHAPES = {
    "kept_drifts": {},
    "kept_coefficients": {"width": 300},
    "no_negatives": {"neg": 0},
    "second_batch": {"ref": 6},
    "second_batch_wide": {"ref": 6, "width": 400},
    "one_positive": {"pos": 1, "neg": 0, "weighted": False},
    "one_feature": {"width": 1},
    "one_generated": {"gen": 1, "ref": 5},
    "many_positives": {"batch": 2, "gen": 2, "pos": 700, "width": 9},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_every_number_is_that_of_the_plain_walk(shape, floor):
    loss, given = DriftLoss((0.05, 0.3), MeanShift(floor=floor)), drawn(**shape)
    assert_same(terms_of(loss, given, torch.float32), terms_of(loss, given, torch.float64))


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_extent": Extent.PROBLEM},
        {"drift_extent": Extent.PROBLEM},
        {"normalize_features": False},
        {"normalize_drift": False},
        {"field": MeanShift(attraction=0.5)},
        {"field": MeanShift(mask_self=False)},
    ],
    ids=["scale_of_problems", "rms_of_problems", "raw_features", "raw_drift", "weak_pull", "unmasked"],
)
@pytest.mark.parametrize("width", [8, 300])
def test_settings(settings, width):
    loss, given = (
        DriftLoss((2.0, 5.0) if "normalize_features" in settings else (0.1, 0.5), **settings),
        drawn(width=width),
    )
    assert_same(terms_of(loss, given, torch.float32), terms_of(loss, given, torch.float64))


@pytest.mark.parametrize("width", [40, 300])
@pytest.mark.parametrize("extent", [Extent.BATCH, Extent.PROBLEM])
def test_sets_side_by_side_and_blocks_of_problems(monkeypatch, extent, width):
    sets = [drawn(batch=batch, seed=batch, weighted=batch != 2, width=width) for batch in (4, 2, 3)]
    loss = DriftLoss((0.05, 0.3), feature_extent=extent, drift_extent=extent)

    def drifts(dtype):
        return [terms.drift for terms in loss.joint_terms([inputs(each, dtype) for each in sets])]

    expected, whole = drifts(torch.float64), drifts(torch.float32)
    monkeypatch.setattr(drifting.problems.ProblemGroup, "_budget", lambda group: 200 * width)
    blocks = drifts(torch.float32)
    for exact, one, many in zip(expected, whole, blocks, strict=True):
        assert (one.double() - exact).abs().max() < 2e-5 * exact.abs().max()
        assert (many.double() - exact).abs().max() < 2e-5 * exact.abs().max()


def inputs(given, dtype):
    return DriftInputs(**{name: x.to(dtype) for name, x in given.items()})


def test_one_set_with_nan_leaves_the_others_alone():
    sets = [inputs(drawn(batch=2, seed=seed), torch.float32) for seed in range(3)]
    sets[1].pos[0, 1, 2] = float("nan")
    losses = DriftLoss().joint_losses(sets)
    assert [bool(loss.isfinite().all()) for loss in losses] == [True, False, True]
    assert losses[1].isnan().all()


def test_samples_of_any_stride_and_type():
    given = drawn(weighted=False)
    strided = {name: x.bfloat16().transpose(1, 2).contiguous().transpose(1, 2) for name, x in given.items()}
    exact = {name: x.bfloat16().double() for name, x in given.items()}
    loss = DriftLoss()
    ours = terms_of_as_given(loss, strided)
    theirs, _ = terms_of(loss, exact, torch.float64)
    assert (ours.drift.double() - theirs.drift).abs().max() < 2e-5 * theirs.drift.abs().max()


def terms_of_as_given(loss, given):
    return loss.terms(given["gen"], given["pos"], given["neg"])


def test_samples_far_from_one_another_and_no_mass():
    """References of weight zero, and kernels that underflow in whole rows and columns."""
    given = drawn(weighted=True)
    given["neg_weight"][:, 0] = 0
    given["gen"][:, 0] += 1000
    given["pos"][:, 1] -= 2000
    loss = DriftLoss((0.001, 0.5), MeanShift(floor=0.0))
    # Distances of several means over .001: their rounding, 2^-24 of each, is some 4e-4 of a kernel.
    assert_same(terms_of(loss, given, torch.float32), terms_of(loss, given, torch.float64), tolerance=2e-3)


def test_what_rounding_leaves_of_no_drift_is_no_nan():
    """Gram matrices give squared norms that may fall below zero: a constant feature, positives that are the batch."""
    constant = {name: x.float() for name, x in drawn(width=300, weighted=False).items()}
    for name in ("gen", "pos", "neg"):
        constant[name] = torch.full_like(constant[name], 3.3)
    same = {name: x.float() for name, x in drawn(batch=9, gen=64, pos=16, neg=0, ref=16, width=400).items()}
    same["self_ref"], same["gen_weight"] = same["pos"].clone(), same["pos_weight"].clone()
    for given in (constant, same):
        terms, gradient = terms_of(DriftLoss((0.02, 0.3)), given, torch.float32)
        assert terms.drift_rms.isfinite().all()
        assert gradient.isfinite().all()


def test_learned_temperatures_stand_beside_numbers():
    given, loss = drawn(), DriftLoss((0.05, LearnedTemperature(0.3)))
    (ours, _), (exact, _) = (terms_of(loss, given, dtype) for dtype in (torch.float32, torch.float64))
    assert (ours.drift - exact.drift).abs().max() < 2e-5 * exact.drift.abs().max()


def test_a_copied_loss_has_the_same_rule(fused_everywhere):
    fused_everywhere.append("nothing is computed here")
    columns = DriftInputs(**drawn()).problems().columns
    assert copy.deepcopy(DriftLoss()).field.is_default_rule(columns)
    assert not MeanShift(kernel=gaussian).is_default_rule(columns)


def test_the_raw_field():
    given = drawn()
    exact = drift_field(given["gen"], given["pos"], given["neg"], temperature=2.0)
    ours = drift_field(*(given[name].float() for name in ("gen", "pos", "neg")), temperature=2.0)
    assert (ours.double() - exact).abs().max() < 2e-5 * exact.abs().max()


def test_without_a_compiler_the_plain_walk_serves_and_says_so(monkeypatch, fused_everywhere):
    fused_everywhere.append("nothing is computed here")
    device = torch.device("cpu")
    assert fits_module.kernels_run.__wrapped__(device)

    def fail(*arguments):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(kernels, "sums_of_sets", fail)
    with pytest.warns(RuntimeWarning, match="Triton could not build a kernel for cpu.*Failed to find C compiler"):
        assert not fits_module.kernels_run.__wrapped__(device)
    monkeypatch.setattr(fits_module, "find_spec", lambda name: None)
    assert not fits_module.kernels_run.__wrapped__(device)
