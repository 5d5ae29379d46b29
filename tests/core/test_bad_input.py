"""Samples that are not numbers, other types and devices, and callers that transform, compile or run in threads."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, Sinkhorn, drift_field
from drifting.arguments import DriftInputs
from drifting.fields import KernelGradient
from drifting.scales import Extent

COUNTS = {"gen": 4, "pos": 5, "neg": 3, "self_ref": 6}


def samples(width: int = 6, dtype: torch.dtype = torch.float32, batch: int = 3) -> dict[str, torch.Tensor]:
    """Every argument, seeded."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(batch, count, width, generator=rng, dtype=torch.float64) + 0.3 * count).to(dtype)
        for name, count in COUNTS.items()
    }


def without_second_batch(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: block for name, block in given.items() if name != "self_ref"}


def loss_and_gradient(loss: DriftLoss, gen: torch.Tensor, pos: torch.Tensor, *others, **named):
    x = gen.clone().requires_grad_()
    value = loss(x, pos, *others, **named)
    value.backward()
    return value.detach(), x.grad


# NaN and infinity.

KINDS = {"float32": (6, torch.float32), "wide": (3000, torch.float32), "float64": (6, torch.float64)}
every_kind = pytest.mark.parametrize(("width", "dtype"), KINDS.values(), ids=KINDS.keys())
every_bad = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
every_argument = pytest.mark.parametrize("name", COUNTS)


def spoilt(name: str, bad: float, width: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All arguments, one coordinate of one sample of problem 1 bad; a second batch only to be spoilt itself."""
    given = samples(width, dtype)
    given[name][1, 2, 3] = bad
    return given if name == "self_ref" else without_second_batch(given)


@every_kind
@every_bad
@every_argument
def test_a_bad_sample_makes_every_loss_and_gradient_nan(name, bad, width, dtype):
    """By the scale that the problems share: a number would hide it."""
    given = spoilt(name, bad, width, dtype)
    given["gen"].requires_grad_()
    terms = DriftLoss().terms(**given)
    terms.loss.mean().backward()
    assert terms.loss.isnan().all()
    assert given["gen"].grad.isnan().all()
    assert not terms.scale.isfinite()


@every_bad
@pytest.mark.parametrize("side", ["pos", "neg"])
def test_weight_zero_does_not_hide_a_bad_sample(side, bad):
    given = spoilt(side, bad)
    weight = torch.zeros(given[side].shape[:2])
    assert DriftLoss().terms(**given, **{f"{side}_weight": weight}).loss.isnan().all()


@every_bad
@every_argument
@pytest.mark.parametrize("field", [MeanShift(), MeanShift(floor=0.0), KernelGradient()], ids=["floor", "none", "grad"])
@pytest.mark.parametrize("extent", [Extent.PROBLEM, Extent.SAMPLE], ids=lambda extent: extent.value)
def test_problems_of_their_own_carry_it_to_no_other(name, bad, field, extent):
    given = spoilt(name, bad)
    clean = {key: block[[0, 2]] for key, block in given.items()}
    loss = DriftLoss(field=field, feature_extent=extent, drift_extent=extent)
    terms, others = loss.terms(**given), loss.terms(**clean)
    assert not terms.loss[1].isfinite()
    torch.testing.assert_close(terms.loss[[0, 2]], others.loss, rtol=1e-6, atol=0)


@every_bad
@every_argument
def test_without_any_normalisation_its_own_problem_shows_it(name, bad):
    given = spoilt(name, bad)
    loss = DriftLoss(normalize_features=False, normalize_drift=False)
    assert not loss.terms(**given).loss[1].isfinite()
    assert not drift_field(**given)[1].isfinite().all()


def test_the_transport_field_carries_it_too():
    given = samples()
    given["pos"][1, 2, 3] = math.nan
    del given["neg"]
    assert DriftLoss(field=Sinkhorn(5)).terms(**given).loss.isnan().all()


@every_kind
@every_bad
@every_argument
def test_refusing_names_the_argument_and_the_problem(name, bad, width, dtype):
    loss = DriftLoss(refuse_nonfinite=True)
    given = spoilt(name, bad, width, dtype)
    message = rf"samples must be finite, got NaN or infinity: {name} in problems \[1\]$"
    for call in (loss, loss.terms):
        with pytest.raises(ValueError, match=message):
            call(**given)


def test_refusing_names_every_argument_and_at_most_five_problems():
    given = {name: block.repeat(3, 1, 1) for name, block in without_second_batch(samples()).items()}
    given["gen"][4, 0, 0] = math.nan
    given["neg"][[0, 1, 3, 5, 6, 8], 1, 1] = math.inf
    message = r"gen in problems \[4\], neg in problems \[0, 1, 3, 5, 6\]$"
    with pytest.raises(ValueError, match=message):
        DriftLoss(refuse_nonfinite=True)(**given)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_refusing_looks_at_samples_of_weight_zero(side):
    given = spoilt(side, math.nan)
    weight = torch.zeros(given[side].shape[:2])
    with pytest.raises(ValueError, match=f"{side} in problems"):
        DriftLoss(refuse_nonfinite=True)(**given, **{f"{side}_weight": weight})


def test_refusing_lets_finite_samples_pass_unchanged():
    given = samples()
    assert torch.equal(DriftLoss(refuse_nonfinite=True)(**given), DriftLoss()(**given))
    huge = {name: 1e15 * block for name, block in given.items()}
    assert DriftLoss(refuse_nonfinite=True)(**huge).isfinite()


def test_refusing_a_bad_sample_leaves_nothing_behind():
    loss = DriftLoss(refuse_nonfinite=True)
    with pytest.raises(ValueError, match="samples must be finite"):
        loss(**spoilt("gen", math.nan))
    assert torch.equal(loss(**samples()), DriftLoss()(**samples()))


@pytest.mark.parametrize("width", [6, 3000])
def test_distances_that_overflow_are_named_as_such(width):
    """1e30 squared is no float32; it is a float64."""
    given = {name: 1e30 * block for name, block in samples(width).items()}
    message = "samples must be finite, got NaN or infinity: no sample, but distances overflow: scale the samples down"
    with pytest.raises(ValueError, match=message):
        DriftLoss(refuse_nonfinite=True)(**given)
    assert not DriftLoss()(**given).isfinite()
    wide = {name: block.double() for name, block in given.items()}
    assert DriftLoss(refuse_nonfinite=True)(**wide).isfinite()


def test_refusing_in_several_sets_names_the_bad_one():
    good, bad = samples(), spoilt("pos", math.nan)
    loss = DriftLoss(refuse_nonfinite=True)
    with pytest.raises(ValueError, match=r"got NaN or infinity: pos in problems \[1\]$"):
        loss.joint_losses([DriftInputs(**good), DriftInputs(**bad), DriftInputs(**good)])


# Float types.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [6, 200])
def test_every_float_type_is_computed_in_float32_at_least(dtype, width):
    given = {name: block.to(dtype) for name, block in samples(width).items()}
    wide = {name: block if dtype == torch.float64 else block.float() for name, block in given.items()}
    value, gradient = loss_and_gradient(DriftLoss(), **given)
    exact, exact_gradient = loss_and_gradient(DriftLoss(), **wide)
    assert value.dtype == exact.dtype and gradient.dtype == dtype
    assert torch.equal(value, exact) and torch.equal(gradient, exact_gradient.to(dtype))
    strided = {name: block.transpose(0, 1).contiguous().transpose(0, 1) for name, block in given.items()}
    assert torch.equal(DriftLoss()(**strided), exact)


def test_float64_is_not_computed_in_float32():
    gen = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    near = [drift_field(gen, torch.tensor([[[x]]], dtype=torch.float64), temperature=1.0) for x in (2.0, 2.0 + 1e-12)]
    assert not torch.equal(*near)


# The meta device.


def on_meta(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: block.to("meta") for name, block in given.items()}


FIELDS = {"mean shift": MeanShift(), "kernel gradient": KernelGradient(), "transport": Sinkhorn(5)}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
@pytest.mark.parametrize(("extent", "refuse"), [(Extent.BATCH, False), (Extent.SAMPLE, True)], ids=["batch", "sample"])
def test_shapes_are_known_without_samples(field, extent, refuse):
    given = on_meta(samples())
    if isinstance(field, Sinkhorn):
        del given["neg"]
    given["gen"].requires_grad_()
    loss = DriftLoss((0.1, 0.2), field, feature_extent=extent, drift_extent=extent, refuse_nonfinite=refuse)
    value = loss(**given, pos_weight=torch.ones(3, device="meta"))
    value.backward()
    assert value.device.type == "meta" and value.shape == ()
    assert given["gen"].grad.device.type == "meta" and given["gen"].grad.shape == (3, 4, 6)
    terms = loss.terms(**given)
    shapes = {name: tuple(getattr(terms, name).shape) for name in ("loss", "drift", "scale", "drift_rms")}
    assert shapes == {"loss": (3,), "drift": (3, 4, 6), "scale": (), "drift_rms": (2,)}
    assert {getattr(terms.diagnostics, name).device.type for name in terms.diagnostics.__dataclass_fields__} == {"meta"}
    assert drift_field(**given, field=field).shape == (3, 4, 6)


def test_shapes_of_features_are_known_without_samples():
    encoder = torch.nn.Conv2d(3, 8, 3, device="meta").requires_grad_(False)
    features = FeatureDriftLoss(lambda x: {"map": encoder(x).flatten(2).mT, "raw": x.flatten(1)[:, None]}, DriftLoss())
    gen = torch.empty(2, 4, 3, 6, 6, device="meta", requires_grad=True)
    pos = torch.empty(2, 5, 3, 6, 6, device="meta")
    value = features(gen, pos)
    value.backward()
    assert value.shape == () and value.device.type == "meta"
    assert gen.grad.shape == gen.shape and gen.grad.device.type == "meta"
    terms = features.terms(gen, pos)
    assert {key: tuple(term.drift.shape) for key, term in terms.items()} == {"map": (32, 4, 8), "raw": (2, 4, 108)}


# Sizes.


@pytest.mark.parametrize("call", [DriftLoss(), DriftLoss().terms, drift_field], ids=["loss", "terms", "field"])
def test_impossible_sizes_are_refused_before_anything_is_allocated(call):
    """Samples that take no memory: one number, expanded."""
    one = torch.zeros(1, 1, 1)
    gen, pos = one.expand(2**20, 2**12, 1), one.expand(2**20, 2**13, 1)
    message = r"B G M = 1048576 \* 4096 \* 12288 distances are more than 17592186044416.*gen is \(1048576, 4096, 1\)"
    with pytest.raises(ValueError, match=message):
        call(gen, pos)


# Transformed, compiled, traced callers.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functional_transforms_are_refused(dtype):
    """torch.func would see the frozen target as a function of the samples, and vmap a second batch axis."""
    given = samples(dtype=dtype)
    gen, pos = given["gen"], given["pos"]
    loss = DriftLoss()
    calls = {
        "grad": lambda: torch.func.grad(lambda x: loss(x, pos))(gen),
        "jvp": lambda: torch.func.jvp(lambda x: loss(x, pos), (gen,), (gen,)),
        "vmap": lambda: torch.func.vmap(loss)(gen[None], pos[None]),
        "field": lambda: torch.func.vmap(drift_field)(gen[None], pos[None]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"gen must be a plain tensor, not one inside torch.func or vmap"):
            pytest.fail(f"{name} returned {call()}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["pos", "neg", "self_ref", "pos_weight"])
def test_functional_transforms_of_other_arguments_are_refused(name, dtype):
    given = samples(dtype=dtype) | {"pos_weight": torch.ones(3)}
    mapped = given.pop(name)
    with pytest.raises(ValueError, match=rf"{name} must be a plain tensor, not one inside torch.func or vmap"):
        torch.func.vmap(lambda block: DriftLoss()(**given, **{name: block}))(mapped[None])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_compiled_step_leaves_the_loss_as_it_is(threads):
    given, net, loss = without_second_batch(samples()), torch.nn.Tanh(), DriftLoss()

    def step(gen: torch.Tensor, *references: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return 2 * loss(net(gen), *references, **named)

    chosen = torch.get_num_threads()
    torch._dynamo.reset()
    try:
        torch.set_num_threads(threads)
        graphs = CompileCounter()
        compiled = torch.compile(step, backend=graphs)
        for _ in range(3):
            value, gradient = loss_and_gradient(compiled, **given)
            plain, plain_gradient = loss_and_gradient(step, **given)
            assert torch.equal(value, plain) and torch.equal(gradient, plain_gradient)
    finally:
        torch.set_num_threads(chosen)
    # tanh, and the mean with the factor: nothing of the engine, and nothing anew at each step (once, after the first).
    assert graphs.op_count <= 2 * 4


def test_batched_gradients_are_refused():
    gen = torch.randn(3, 4, 5, requires_grad=True)
    losses = DriftLoss().terms(gen, torch.randn(3, 6, 5)).loss
    with pytest.raises(RuntimeError, match=r"one gradient at a time, not is_grads_batched=True"):
        torch.autograd.grad(losses, gen, torch.eye(3), is_grads_batched=True)


# Settings of the process, and threads.


@contextmanager
def matmul_precision(precision: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
@pytest.mark.parametrize("width", [6, 3000])
def test_the_precision_of_products_is_the_callers_again_and_changes_nothing(precision, width):
    given = samples(width)
    with matmul_precision("highest"):
        value, gradient = loss_and_gradient(DriftLoss(), **given)
    with matmul_precision(precision):
        same, same_gradient = loss_and_gradient(DriftLoss(), **given)
        assert torch.get_float32_matmul_precision() == precision
    assert torch.equal(value, same) and torch.equal(gradient, same_gradient)


def test_products_run_in_full_precision_whatever_the_caller_chose():
    seen = []

    def field(distance, columns, **named):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return MeanShift()(distance, columns, **named)

    given = samples()
    with matmul_precision("medium"), torch.autocast("cpu", dtype=torch.bfloat16):
        DriftLoss(field=field)(**given)
        drift_field(**given, field=field)
    assert set(seen) == {("highest", False)}


def test_an_error_within_leaves_the_callers_precision():
    def field(distance, columns, **named):
        raise RuntimeError("stop")

    with matmul_precision("medium"):
        with pytest.raises(RuntimeError, match="stop"):
            DriftLoss(field=field)(**samples())
        assert torch.get_float32_matmul_precision() == "medium"


def test_precision_is_full_until_the_last_of_several_threads_has_ended():
    """The setting is the process's: a call that ends must not take it from one that still runs."""
    inside, done, seen = Barrier(2, timeout=20), Barrier(2, timeout=20), []

    def first(distance, columns, **named):
        inside.wait()  # both have begun
        return MeanShift()(distance, columns, **named)

    def second(distance, columns, **named):
        if not seen:
            inside.wait()
            done.wait()  # the first has ended
        seen.append(torch.get_float32_matmul_precision())
        return MeanShift()(distance, columns, **named)

    def run_first():
        DriftLoss((0.1,), field=first)(**samples())
        done.wait()

    with matmul_precision("medium"):
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(run_first), pool.submit(lambda: DriftLoss((0.1,), field=second)(**samples()))]:
                future.result()
        assert torch.get_float32_matmul_precision() == "medium"
    assert seen == ["highest"]


@pytest.mark.parametrize("width", [6, 200], ids=["small", "wide"])
def test_threads_that_share_a_loss_get_right_results(width):
    """As DataParallel calls it; every thread has a batch of its own."""
    loss = DriftLoss(refuse_nonfinite=True)
    batches = [{name: (k + 1) * block.roll(k, 1) for name, block in samples(width).items()} for k in range(8)]
    expected = [loss_and_gradient(loss, **given) for given in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            found = list(pool.map(lambda given: loss_and_gradient(loss, **given), batches))
            for (value, gradient), (right, right_gradient) in zip(found, expected, strict=True):
                assert torch.equal(value, right) and torch.equal(gradient, right_gradient)
