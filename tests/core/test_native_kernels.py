"""The compiled steps of the CPU path: each equals its plain PyTorch twin, hides nothing, and can be done without."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_drift_loss_golden import CASES, golden

from drifting import DriftLoss, MeanShift, drift_field
from drifting.arguments import DriftInputs
from drifting.distances import pairwise_distance
from drifting.fields import Columns, couplings
from drifting.native import kernels as native
from drifting.native.library import load
from drifting.problems import Block, ProblemGroup, centre_samples
from drifting.walks import TILES

CLOSE = 2e-5  # of the largest magnitude


@contextmanager
def plain_path() -> Iterator[None]:
    """Within: every step by its plain twin."""
    with mock.patch.object(native, "usable", lambda *tensors: False):
        yield


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = CLOSE) -> None:
    assert ours.shape == theirs.shape
    assert ours.isfinite().all() and theirs.isfinite().all()
    error = (ours.double() - theirs.double()).abs().max()
    assert error <= tolerance * theirs.double().abs().max() + 1e-30, f"{error} of {theirs.abs().max()}"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_this_machine_runs_the_compiled_steps():
    """The other tests here would compare the plain path with itself."""
    assert load() is not None
    assert native.usable(torch.zeros(1))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not native.usable(torch.zeros(1), torch.zeros(1, dtype=dtype))
    assert not native.usable(torch.zeros(1, device="meta"))


# One step and its twin.

widths = st.one_of(st.integers(1, 40), st.integers(41, 300))
seeds = st.integers(0, 2**31)


@given(batch=st.integers(1, 4), count=st.integers(1, 9), width=widths, seed=seeds, offset=st.sampled_from([0.0, 300.0]))
def test_centred_samples_equal_the_plain_ones(batch, count, width, seed, offset):
    raw = random(batch, count, width, seed=seed) + offset
    centre = raw.mean(1, keepdim=True)

    def centred() -> tuple[torch.Tensor, torch.Tensor]:
        # A stretch of a longer block, as the engine keeps them: whatever lies around it must stay as it is.
        out, square = torch.full((batch, count + 5, width), 7.0), torch.full((batch, count + 5), 7.0)
        centre_samples(raw, centre, out[:, 2 : count + 2], square[:, 2 : count + 2])
        for memory in (out, square):
            assert (memory[:, :2] == 7).all() and (memory[:, count + 2 :] == 7).all()
        return out[:, 2 : count + 2], square[:, 2 : count + 2]

    ours = centred()
    with plain_path():
        plain = centred()
    assert torch.equal(ours[0], plain[0])
    assert_near(ours[1], plain[1])
    assert_near(ours[1], (raw.double() - centre.double()).square().sum(-1))


@dataclass
class Drawn:
    """Samples and weights of a few problems."""

    inputs: DriftInputs
    field: MeanShift


@st.composite
def drawn(draw, largest: int = 9) -> Drawn:
    """Odd sizes, weights on any side or none, with and without extra negatives and a second batch."""
    count = st.integers(1, largest)
    batch, num_gen, num_pos, num_neg = draw(count), draw(count), draw(count), draw(st.integers(0, largest))
    num_ref = draw(count) if num_gen == 1 or draw(st.booleans()) else 0
    width, seed = draw(widths), draw(seeds)
    weighted = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    offset = draw(st.sampled_from([0.0, 50.0]))

    def cloud(count: int, shift: float) -> torch.Tensor | None:
        return random(batch, count, width, seed=seed + count) + shift + offset if count else None

    def weight(count: int, wanted: bool) -> torch.Tensor | None:
        return 3 * uniform(batch, count, seed=seed + 7 + count) if wanted and count else None

    inputs = DriftInputs(
        gen=cloud(num_gen, 0.0),
        pos=cloud(num_pos, 0.7),
        neg=cloud(num_neg, -0.3),
        self_ref=cloud(num_ref, 0.2),
        gen_weight=weight(num_ref or num_gen, weighted[0]),
        neg_weight=weight(num_neg, weighted[1]),
        pos_weight=weight(num_pos, weighted[2]),
    )
    field = MeanShift(
        floor=draw(st.sampled_from([0.0, 1e-3, 0.2])),
        mask_self=draw(st.booleans()),
        attraction=draw(st.sampled_from([1.0, 1.5, 0.0])),
        repulsion=draw(st.sampled_from([1.0, 0.25])),
    )
    return Drawn(inputs, field)


def first_block(inputs: DriftInputs) -> Block:
    group = ProblemGroup([inputs.problems()], TILES)
    return group.block(group.row_slices()[0], find_centre=True)


@given(case=drawn(), with_gram=st.booleans())
def test_distances_equal_the_plain_ones(case, with_gram):
    with plain_path():
        block = first_block(case.inputs)
        gram = torch.bmm(block.refs, block.refs.mT) if with_gram else None

    def distances() -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty(*block.gen.shape[:2], block.refs.shape[1])
        return out, pairwise_distance(block, gram, out=out)

    distance, row_sum = distances()
    with plain_path():
        plain, plain_row_sum = distances()
    # Squares: the root enlarges the rounding of near pairs, equally in both.
    assert_near(distance.square(), plain.square())
    for d, total in ((distance, row_sum), (plain, plain_row_sum)):
        assert_near(total, (d.double() * block.columns.weight[:, None]).sum(-1))
    if case.inputs.self_ref is None:
        self_distance = distance[..., : distance.shape[1]].diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(self_distance, torch.full_like(self_distance, 1e-4), rtol=1e-6, atol=0)


def tile(case: Drawn, seed: int = 0) -> tuple[torch.Tensor, Columns]:
    """Distances [B, G, M] without any geometry, and the columns of the case."""
    columns = case.inputs.problems().columns
    shape = (len(columns.weight), case.inputs.gen.shape[1], columns.weight.shape[1])
    return uniform(*shape, seed=seed) * 3 + 1e-4, columns


@given(case=drawn(largest=20), seed=seeds, temperature=st.sampled_from([0.1, 0.5, 3.0, 100.0]))
def test_mean_shift_equals_the_plain_one(case, seed, temperature):
    distance, columns = tile(case, seed)
    before = distance.clone()
    ours = case.field(distance, columns, temperature=temperature)
    assert torch.equal(distance, before)
    with plain_path():
        plain = case.field(distance, columns, temperature=temperature)
    exact = case.field(distance.double(), columns, temperature=temperature)
    assert ours.balanced == plain.balanced
    for other in (plain, exact):
        assert_near(ours.coefficients, other.coefficients)
        assert_near(ours.contact.positive_mass, other.contact.positive_mass)
        assert_near(ours.contact.negative_mass, other.contact.negative_mass)
    if case.field.floor == 0:
        assert ours.contact.floor_share is None
    else:  # one pair may stand on the floor by rounding
        difference = (ours.contact.floor_share - plain.contact.floor_share).abs().max()
        assert difference <= 1.5 / distance[0].numel()
    silent = case.field(distance, columns, temperature=temperature, with_contact=False)
    assert silent.contact is None and torch.equal(silent.coefficients, ours.coefficients)


def test_mean_shift_takes_its_temperature_as_a_tensor():
    distance, columns = tile(Drawn(DriftInputs(random(3, 4, 5), random(3, 6, 5)), MeanShift()))
    number = MeanShift()(distance, columns, temperature=0.25)
    tensor = MeanShift()(distance, columns, temperature=torch.tensor(0.25))
    assert torch.equal(number.coefficients, tensor.coefficients)


def test_mean_shift_of_a_view_of_distances():
    """Kernels read memory by pointers; a tile that is cut out of a wider one has gaps."""
    inputs = DriftInputs(random(3, 4, 5), random(3, 6, 5))
    distance, columns = tile(Drawn(inputs, MeanShift()))
    wide = torch.full((3, 4, 20), 1e-4)
    wide[..., 5:15] = distance
    ours = MeanShift()(wide[..., 5:15], columns, temperature=0.5)
    assert_near(ours.coefficients, MeanShift()(distance, columns, temperature=0.5).coefficients)


@given(
    case=drawn(largest=10), seed=seeds, temperatures=st.lists(st.sampled_from([0.1, 0.5, 3.0]), min_size=1, max_size=3)
)
def test_mean_shift_at_several_temperatures_equals_one_after_another(case, seed, temperatures):
    distance, columns = tile(case, seed)
    before = distance.clone()
    together = case.field.at_temperatures(distance, columns, temperatures, with_contact=True)
    assert torch.equal(distance, before) and len(together) == len(temperatures)
    for ours, temperature in zip(together, temperatures, strict=True):
        with plain_path():
            plain = case.field(distance, columns, temperature=temperature)
        assert ours.balanced == plain.balanced
        assert_near(ours.coefficients, plain.coefficients)
        assert_near(ours.contact.positive_mass, plain.contact.positive_mass)
        assert_near(ours.contact.negative_mass, plain.contact.negative_mass)
        if case.field.floor > 0:
            difference = (ours.contact.floor_share - plain.contact.floor_share).abs().max()
            assert difference <= 1.5 / distance[0].numel()


@pytest.mark.parametrize("problems", [1, 7, 8, 9, 17])
def test_problems_side_by_side_do_not_mix(problems):
    """Eight of them share a vector; the last vector is not full."""
    inputs = DriftInputs(random(problems, 4, 5), random(problems, 3, 5), pos_weight=0.5 + uniform(problems, 3))
    distance, columns = tile(Drawn(inputs, MeanShift()))
    (ours,) = MeanShift().at_temperatures(distance, columns, [0.5], with_contact=True)
    for b in range(problems):
        alone = MeanShift()(distance[b : b + 1], replace(columns, weight=columns.weight[b : b + 1]), temperature=0.5)
        assert_near(ours.coefficients[b], alone.coefficients[0])
        assert_near(ours.contact.positive_mass[b], alone.contact.positive_mass[0])


def test_long_rows_and_other_rules_are_asked_one_after_another():
    for inputs, field in (
        (DriftInputs(random(2, 4, 5), random(2, 40, 5)), MeanShift()),
        (DriftInputs(random(2, 4, 5), random(2, 3, 5)), MeanShift(separate_blocks=True)),
    ):
        distance, columns = tile(Drawn(inputs, field))
        assert field.at_temperatures(distance, columns, [0.5], with_contact=True) is None
        (found,) = couplings(field, distance, columns, [0.5], with_contact=True)
        assert torch.equal(found.coefficients, field(distance, columns, temperature=0.5).coefficients)


@given(case=drawn(largest=9), seed=seeds, num_temperatures=st.integers(1, 3))
def test_displacements_of_small_problems_equal_the_formula(case, seed, num_temperatures):
    """Offset by 100: differences keep their digits."""
    gen, *others = (100 + block.contiguous() for block in (case.inputs.gen, *case.inputs.problems().blocks))
    blocks = [gen, *others[1:]] if case.inputs.self_ref is None else others
    refs = torch.cat(blocks, dim=1).double()
    shape = (*gen.shape[:2], refs.shape[1])
    parts = [uniform(*shape, seed=seed + k) - 0.5 for k in range(num_temperatures)]
    squares = native.squared_displacements_of_small(parts, gen, blocks)
    for k, part in enumerate(parts):
        exact = torch.einsum("bij,bijd->bid", part.double(), refs[:, None] - gen.double()[:, :, None])
        drift = torch.full_like(gen, float("nan"))
        native.displacement_of_small(part, gen, blocks, out=drift)
        assert_near(drift, exact)
        assert_near(squares[..., k], exact.square().sum(-1))


# What the floor must not hide.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_coordinate_stays_visible_in_its_sample(bad):
    raw = random(3, 4, 11)
    raw[1, 2, 7] = bad
    out, square = torch.empty(3, 4, 11), torch.empty(3, 4)
    centre_samples(raw, torch.zeros(3, 1, 11), out, square)
    assert [tuple(i) for i in (~out.isfinite()).nonzero().tolist()] == [(1, 2, 7)]
    assert [tuple(i) for i in (~square.isfinite()).nonzero().tolist()] == [(1, 2)]


@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("place", [(1, 0, 3), (1, 3, 0), (1, 2, 9)], ids=["gen", "other gen", "pos"])
def test_mean_shift_of_a_nan_distance_is_nan(floor, place):
    distance, columns = tile(Drawn(DriftInputs(random(3, 4, 5), random(3, 6, 5)), MeanShift()))
    clean = MeanShift(floor=floor)(distance, columns, temperature=0.5).coefficients
    distance[place] = float("nan")
    ours = MeanShift(floor=floor)(distance, columns, temperature=0.5).coefficients
    assert ours[place[:2]].isnan().all()
    assert_near(ours[[0, 2]], clean[[0, 2]])


def evaluate(loss: DriftLoss, inputs: DriftInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each problem and gradient of their sum."""
    named = {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
    named["gen"] = inputs.gen.clone().requires_grad_()
    values = loss.terms(**named).loss
    values.sum().backward()
    return values.detach(), named["gen"].grad


@pytest.mark.parametrize("width", [3, 300], ids=["small", "wide"])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("name", ["gen", "pos", "neg", "self_ref"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_makes_every_loss_nan_on_either_path(width, floor, name, bad):
    blocks = {key: random(2, n, width, seed=n) for key, n in (("gen", 9), ("pos", 20), ("neg", 6))}
    if name == "self_ref":
        blocks["self_ref"] = random(2, 5, width, seed=5)
    blocks[name][1, 2, 0] = bad
    loss = DriftLoss(field=MeanShift(floor=floor))
    assert loss.terms(**blocks).loss.isnan().all()
    with plain_path():
        assert loss.terms(**blocks).loss.isnan().all()


# Where the kernel's one exponential does not reach.


def log_domain_coefficients(distance: torch.Tensor, columns: Columns, temperature: float, floor: float) -> torch.Tensor:
    """The default rule in float64, by two softmaxes; self pairs masked."""
    logit = -distance.double() / temperature
    if columns.self_is_gen:
        logit[..., : columns.num_self].diagonal(dim1=1, dim2=2).fill_(-float("inf"))
    affinity = (logit.softmax(-1) * logit.softmax(-2)).sqrt().clamp(min=floor) * columns.weight[:, None].double()
    negative, positive = affinity.split([columns.num_negative, columns.num_pos], dim=-1)
    return torch.cat([-negative * positive.sum(-1, keepdim=True), positive * negative.sum(-1, keepdim=True)], dim=-1)


UNDERFLOW = {
    "temperature of 1e-6": (2.0**-20, lambda k: k),
    "one sample far from everything": (2.0**-4, lambda k: k.index_fill(1, torch.tensor([2]), 2**18)),
    "one reference far from everything": (2.0**-4, lambda k: k.index_fill(2, torch.tensor([9]), 2**18)),
    "one problem of three": (2.0**-4, lambda k: torch.cat([k[:2].remainder(64), 4096 + k[2:] * 16])),
}


@pytest.mark.parametrize(("temperature", "place"), UNDERFLOW.values(), ids=UNDERFLOW.keys())
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("num_ref", [0, 5])
def test_where_sums_underflow_the_answer_is_that_of_the_softmaxes(temperature, place, floor, num_ref):
    """Distances are whole multiples of the temperature, so that float32 rounds no exponent."""
    weight = 0.5 + uniform(3, 6)
    inputs = DriftInputs(
        random(3, 4, 5), random(3, 6, 5), pos_weight=weight, self_ref=random(3, num_ref, 5) if num_ref else None
    )
    columns = inputs.problems().columns
    multiples = (uniform(3, 4, columns.weight.shape[1], seed=4) * 1000).round()
    distance = place(multiples) * temperature
    field = MeanShift(floor=floor)
    fused = native.mean_shift(
        distance,
        columns.weight,
        num_negative=columns.num_negative,
        temperature=temperature,
        floor=floor,
        attraction=1.0,
        repulsion=1.0,
        mask_self=columns.self_is_gen,
    )
    assert fused is None
    ours = field(distance, columns, temperature=temperature).coefficients
    assert_near(ours, log_domain_coefficients(distance, columns, temperature, floor))


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_give_a_finite_loss(temperature):
    inputs = DriftInputs(random(3, 4, 5), torch.cat([random(3, 6, 5), torch.full((3, 1, 5), 1e4)], dim=1))
    ours = evaluate(DriftLoss((temperature,)), inputs)
    with plain_path():
        plain = evaluate(DriftLoss((temperature,)), inputs)
    for one, other in zip(ours, plain, strict=True):
        assert_near(one, other, 1e-3)  # of exponents of 1e6, float32 keeps no more


# The whole loss.


@given(case=drawn(largest=12))
def test_loss_and_gradient_equal_the_plain_ones(case):
    """From small problems to wide ones: the engine takes other steps for either."""
    loss = DriftLoss((0.2, 1.0), case.field)
    ours = evaluate(loss, case.inputs)
    with plain_path():
        plain = evaluate(loss, case.inputs)
    for one, other in zip(ours, plain, strict=True):
        assert_near(one, other, 1e-4)


@given(case=drawn(largest=12), temperature=st.sampled_from([1.0, 20.0]))
def test_the_raw_drift_equals_the_plain_one(case, temperature):
    named = {name: getattr(case.inputs, name) for name in case.inputs.__dataclass_fields__}
    ours = drift_field(**named, temperature=temperature, field=case.field)
    with plain_path():
        plain = drift_field(**named, temperature=temperature, field=case.field)
    exact = drift_field(**named | {"gen": case.inputs.gen.double()}, temperature=temperature, field=case.field)
    for other in (plain, exact):
        assert_near(ours, other, 1e-4)


WHOLE = {
    "default": DriftInputs(random(4, 16, 64, seed=1), random(4, 24, 64, seed=2)),
    "guided": DriftInputs(
        random(4, 16, 64, seed=1),
        random(4, 24, 64, seed=2),
        random(4, 9, 64, seed=3),
        neg_weight=torch.tensor([0.0, 0.5, 2.0, 7.0]),
    ),
    "second batch": DriftInputs(random(4, 16, 64, seed=1), random(4, 24, 64, seed=2), self_ref=random(4, 11, 64)),
    "small": DriftInputs(random(33, 5, 3, seed=1), random(33, 7, 3, seed=2), pos_weight=uniform(33, 7)),
    "wide": DriftInputs(random(2, 7, 1031, seed=1), random(2, 5, 1031, seed=2)),
}


@pytest.mark.parametrize("inputs", WHOLE.values(), ids=WHOLE.keys())
def test_the_default_loss_equals_the_plain_one(inputs):
    ours = evaluate(DriftLoss(), inputs)
    with plain_path():
        plain = evaluate(DriftLoss(), inputs)
    for one, other in zip(ours, plain, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("name", CASES)
def test_the_golden_cases_equal_the_plain_ones(name):
    case = golden(name)
    with_neg = bool(case["neg"].shape[1])
    inputs = DriftInputs(
        case["gen"],
        case["pos"],
        case["neg"] if with_neg else None,
        gen_weight=case.get("weight_gen"),
        pos_weight=case.get("weight_pos"),
        neg_weight=case.get("weight_neg") if with_neg else None,
    )
    loss = DriftLoss(tuple(case["R_list"].tolist()))
    ours = evaluate(loss, inputs)
    with plain_path():
        plain = evaluate(loss, inputs)
    # Distances within a collapsed batch are the rounding of dot products, where there are any.
    tolerance = 2e-3 if name == "collapsed_gen" else CLOSE
    for one, other in zip(ours, plain, strict=True):
        assert_near(one, other, tolerance)


@pytest.mark.parametrize("threads", [2, 3])
def test_more_threads_give_the_same_bits(threads):
    """Problems are dealt to threads; none is cut."""
    raw, inner, own, square = random(5, 4, 33), random(5, 4, 9), 9 + uniform(5, 4), 9 + uniform(5, 9)
    weight, distance = uniform(5, 9), 1e-4 + uniform(5, 4, 9)

    def everything() -> list[torch.Tensor]:
        refs, norm = torch.zeros(5, 4, 33), torch.zeros(5, 4)
        native.centre_samples(raw, raw.mean(1, keepdim=True), refs, norm)
        found, row_sum = torch.zeros(5, 4, 9), torch.zeros(5, 4)
        native.distances(inner, own, square, weight, found, row_sum, smallest=1e-8, self_is_gen=True)
        shift = native.mean_shift(
            distance,
            weight,
            num_negative=4,
            temperature=0.3,
            floor=1e-3,
            attraction=1.0,
            repulsion=1.5,
            mask_self=True,
        )
        return [refs, norm, found, row_sum, shift.coefficients, shift.mass, shift.on_floor]

    def losses() -> list[torch.Tensor]:
        return [part for name in ("small", "guided") for part in evaluate(DriftLoss(), WHOLE[name])]

    one, one_loss = everything(), losses()
    chosen = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        several, several_loss = everything(), losses()
    finally:
        torch.set_num_threads(chosen)
    for a, b in zip(one, several, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(several_loss, one_loss, strict=True):  # products of matrices are torch's
        assert_near(a, b)
