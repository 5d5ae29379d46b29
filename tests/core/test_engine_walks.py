"""How the engine goes through a batch must not show in its results: blocks, what is kept, sets at once, strides."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

import drifting.problems
import drifting.scales
import drifting.superposition
import drifting.walks
from drifting import DriftLoss, DriftTerms, FeatureDriftLoss, MeanShift, Sinkhorn, drift_field
from drifting.arguments import DriftInputs
from drifting.fields import KernelGradient
from drifting.problems import ProblemGroup
from drifting.scales import Extent, global_sum
from drifting.superposition import gram_saves
from drifting.walks import TILES


def problem_set(
    *,
    batch: int = 7,
    gen: int = 4,
    pos: int = 5,
    neg: int = 0,
    ref: int = 0,
    width: int = 6,
    weighted: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> DriftInputs:
    """Problems of unlike size, so that each shows in the statistics."""
    rng = torch.Generator().manual_seed(seed)
    size = torch.rand(batch, 1, 1, generator=rng, dtype=torch.float64) + 0.3

    def cloud(count: int, shift: float) -> torch.Tensor | None:
        block = size * (torch.randn(batch, count, width, generator=rng, dtype=torch.float64) + shift)
        return block.to(dtype) if count else None

    def weight(count: int) -> torch.Tensor | None:
        drawn = 2 * torch.rand(batch, count, generator=rng, dtype=torch.float64)
        return drawn if weighted and count else None

    return DriftInputs(
        gen=cloud(gen, 0.0),
        pos=cloud(pos, 0.5),
        neg=cloud(neg, -0.3),
        self_ref=cloud(ref, 0.1),
        gen_weight=weight(ref or gen),
        pos_weight=weight(pos),
        neg_weight=weight(neg),
    )


def assert_same(ours: DriftTerms, theirs: DriftTerms, tolerance: float = 1e-12) -> None:
    """Every number of the terms, relative to the largest of its kind."""
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in ("loss", "drift", "scale", "drift_rms")]
    figures = ours.diagnostics.__dataclass_fields__
    pairs += [(name, getattr(ours.diagnostics, name), getattr(theirs.diagnostics, name)) for name in figures]
    for name, one, other in pairs:
        bound = tolerance * float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


def terms_and_gradient(loss: DriftLoss, inputs: DriftInputs) -> tuple[DriftTerms, torch.Tensor]:
    gen = inputs.gen.clone().requires_grad_()
    terms = loss.joint_terms([replace(inputs, gen=gen)])[0]
    terms.loss.sum().backward()
    return terms, gen.grad


SETS = {
    "plain": problem_set(),
    "guided": problem_set(neg=3, weighted=True),
    "second batch": problem_set(ref=6, weighted=True),
    "wide": problem_set(batch=5, width=200, neg=2),
    "float32": problem_set(neg=3, weighted=True, dtype=torch.float32),
    "wide, float32": problem_set(batch=5, width=800, ref=6, dtype=torch.float32),
}
FIELDS = {
    "mean shift": MeanShift(),
    "unbalanced": MeanShift(attraction=1.5, floor=0.0),
    "kernel gradient": KernelGradient(),
}
every_set = pytest.mark.parametrize("inputs", SETS.values(), ids=SETS.keys())
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())


# Blocks.


def count_blocks(inputs: DriftInputs) -> int:
    return len(ProblemGroup([inputs.problems()], TILES).row_slices())


@every_set
@every_field
@pytest.mark.parametrize("extent", [Extent.BATCH, Extent.SAMPLE], ids=["batch", "sample"])
def test_results_do_not_depend_on_the_size_of_a_block(monkeypatch, inputs, field, extent):
    """One problem at a time, a few, and all at once."""
    loss = DriftLoss((0.1, 0.4), field, feature_extent=extent, drift_extent=extent)
    tolerance = 1e-12 if inputs.gen.dtype == torch.float64 else 1e-5  # products of other sizes round otherwise
    batch, results, blocks = len(inputs.gen), [], []
    for size in (1, 3, batch):
        samples = sum(b.shape[1] for b in (inputs.gen, inputs.pos, inputs.neg, inputs.self_ref) if b is not None)
        floats = samples * inputs.gen.shape[2] + TILES * inputs.gen.shape[1] * samples
        one_problem = inputs.gen.dtype.itemsize * floats
        memory = 1 if size == 1 else size * one_problem + 1
        monkeypatch.setattr(drifting.problems, "CPU_BLOCK", memory)
        blocks.append(count_blocks(inputs))
        raw = drift_field(**as_arguments(inputs), field=field, temperature=1.0)
        results.append((*terms_and_gradient(loss, inputs), raw))
    assert blocks[0] == batch and 1 < blocks[1] < batch and blocks[2] == 1
    for terms, gradient, raw in results[:-1]:
        assert_same(terms, results[-1][0], tolerance)
        for one, other in ((gradient, results[-1][1]), (raw, results[-1][2])):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def as_arguments(inputs: DriftInputs) -> dict[str, torch.Tensor | None]:
    return {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}


def test_the_transport_field_does_not_see_blocks(monkeypatch):
    inputs = SETS["second batch"]
    whole = DriftLoss((0.1,), Sinkhorn(20)).joint_terms([inputs])[0]
    monkeypatch.setattr(drifting.problems, "CPU_BLOCK", 1)
    assert_same(DriftLoss((0.1,), Sinkhorn(20)).joint_terms([inputs])[0], whole)


# Two ways to keep the drifts of several temperatures.


@pytest.mark.parametrize("ref", [0, 6], ids=["own negatives", "second batch"])
@pytest.mark.parametrize("attraction", [1.0, 1.5], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("extent", [Extent.BATCH, Extent.SAMPLE], ids=["batch", "sample"])
@pytest.mark.parametrize("width", [3, 40])
def test_kept_drifts_and_kept_coefficients_are_the_same(monkeypatch, ref, attraction, extent, width):
    inputs = problem_set(neg=2, ref=ref, weighted=True, width=width)
    loss = DriftLoss(field=MeanShift(attraction=attraction), feature_extent=extent, drift_extent=extent)
    kinds, results = [], []
    for saves in (True, False):
        monkeypatch.setattr(drifting.walks, "gram_saves", lambda *_, saves=saves: saves)
        used = set()
        for kind in (drifting.superposition.KeptCoefficients, drifting.superposition.KeptDrifts):
            monkeypatch.setattr(kind, "add", spy(kind.add, used, kind.__name__))
        results.append(terms_and_gradient(loss, inputs))
        monkeypatch.undo()
        kinds.append(used)
    # Rows that do not sum to zero need the sample itself among the references.
    with_gram = "KeptCoefficients" if attraction == 1 or not ref else "KeptDrifts"
    assert kinds == [{with_gram}, {"KeptDrifts"}]
    (coefficients, coefficients_gradient), (drifts, drifts_gradient) = results
    assert_same(coefficients, drifts, 1e-10)  # |V|^2 = c K c^T cancels digits
    atol = 1e-10 * float(drifts_gradient.abs().max())
    torch.testing.assert_close(coefficients_gradient, drifts_gradient, rtol=0, atol=atol)


def spy(method: Callable, used: set[str], name: str) -> Callable:
    def call(self, *args, **named):
        used.add(name)
        return method(self, *args, **named)

    return call


class Products(TorchFunctionMode):
    """Counts multiplications in products of matrices as they happen."""

    multiplications = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.bmm, torch.matmul):
            self.multiplications += args[0].numel() * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


SIZES = {
    "wide": {"gen": 6, "pos": 7, "width": 300},
    "narrow": {"gen": 6, "pos": 7, "width": 2},
    "many references": {"gen": 3, "pos": 60, "width": 50},
    "many negatives of the same width": {"gen": 8, "pos": 4, "neg": 30, "width": 64},
    "second batch, few": {"gen": 20, "pos": 3, "ref": 3, "width": 100},
    "second batch, many": {"gen": 3, "pos": 30, "ref": 20, "width": 40},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("num_temperatures", [1, 3, 8])
def test_the_way_with_fewer_multiplications_is_taken(monkeypatch, sizes, num_temperatures):
    inputs = problem_set(batch=2, **sizes)
    loss = DriftLoss([0.1 * (k + 1) for k in range(num_temperatures)])

    def multiplications() -> int:
        with Products() as counted:
            loss.joint_losses([inputs])
        return counted.multiplications

    counts = {}
    for saves in (True, False):
        monkeypatch.setattr(drifting.walks, "gram_saves", lambda *_, saves=saves: saves)
        counts[saves] = multiplications()
    monkeypatch.undo()
    assert counts[True] != counts[False]
    assert gram_saves(ProblemGroup([inputs.problems()], TILES), num_temperatures) == (counts[True] < counts[False])
    assert multiplications() == min(counts.values())


def test_either_way_is_taken_by_some_size():
    chosen = {
        gram_saves(ProblemGroup([problem_set(batch=2, **sizes).problems()], TILES), 3) for sizes in SIZES.values()
    }
    assert chosen == {True, False}


# Several sets in one call.

EQUAL = [problem_set(batch=3, seed=1), problem_set(batch=5, seed=2)]  # but for B: side by side
MIXED = [
    EQUAL[0],
    problem_set(batch=2, seed=3, neg=4, weighted=True),
    problem_set(batch=3, seed=4, weighted=True),
    problem_set(batch=4, seed=5, ref=3),
    problem_set(batch=3, seed=6, width=90),
    problem_set(batch=3, seed=7, dtype=torch.float32),
    problem_set(batch=2, seed=8, dtype=torch.bfloat16),
    problem_set(batch=3, seed=9, width=90, dtype=torch.float32, neg=2),
    EQUAL[1],
]


@pytest.mark.parametrize("sets", [EQUAL, MIXED], ids=["equal shapes", "mixed"])
@pytest.mark.parametrize("extent", Extent, ids=lambda extent: extent.value)
@pytest.mark.parametrize("memory", [4 * 2**20, 4000], ids=["one block", "blocks across sets"])
def test_sets_in_one_call_equal_one_call_for_each(monkeypatch, sets, extent, memory):
    monkeypatch.setattr(drifting.problems, "CPU_BLOCK", memory)
    loss = DriftLoss(feature_extent=extent, drift_extent=extent)
    gens = [inputs.gen.clone().requires_grad_() for inputs in sets]
    joint = [replace(inputs, gen=gen) for inputs, gen in zip(sets, gens, strict=True)]
    terms, losses = loss.joint_terms(joint), loss.joint_losses(joint)
    sum((k + 1) * values.sum() for k, values in enumerate(losses)).backward()
    for k, inputs in enumerate(sets):
        exact = inputs.gen.dtype == torch.float64
        tolerance = 1e-12 if exact else 1e-5
        alone, gradient = terms_and_gradient(loss, inputs)
        for one, other in ((terms[k].drift, alone.drift), (terms[k].loss, alone.loss)):
            assert one.dtype == (torch.float64 if exact else torch.float32) and one.shape == other.shape
        assert_same(terms[k], alone, tolerance)
        torch.testing.assert_close(losses[k], alone.loss, rtol=tolerance, atol=0)
        rounding = {torch.bfloat16: 1e-2}.get(inputs.gen.dtype, tolerance)
        bound = (k + 1) * rounding * float(gradient.abs().max())
        torch.testing.assert_close(gens[k].grad, (k + 1) * gradient, rtol=0, atol=bound)


@pytest.mark.parametrize("sets", [EQUAL[:1], EQUAL, MIXED], ids=["one", "equal shapes", "mixed"])
@pytest.mark.parametrize("call", ["joint_losses", "joint_terms"])
def test_ranks_exchange_numbers_twice_for_any_number_of_sets(monkeypatch, sets, call):
    exchanged = []

    def counted(x: torch.Tensor, group: object = None) -> torch.Tensor:
        exchanged.append(x.numel())
        return global_sum(x, group)

    monkeypatch.setattr(drifting.scales, "num_ranks", lambda group=None: 2)
    monkeypatch.setattr(drifting.scales, "global_sum", counted)
    getattr(DriftLoss((0.1, 0.2, 0.4)), call)(sets)
    assert len(exchanged) == 2
    assert sum(exchanged) <= len(sets) * (2 + 4)  # sums and masses, not samples


def test_features_without_a_budget_are_exchanged_twice(monkeypatch):
    exchanged = []
    monkeypatch.setattr(drifting.scales, "num_ranks", lambda group=None: 2)
    monkeypatch.setattr(drifting.scales, "global_sum", lambda x, group=None: exchanged.append(x) or x)
    encoder = lambda x: {str(k): x.reshape(len(x), -1, k + 1) for k in (0, 1, 2, 5)}  # noqa: E731
    gen, pos = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    FeatureDriftLoss(encoder, DriftLoss(), budget=None)(gen, pos)
    assert len(exchanged) == 2


# Gradients, whoever asks for them and how often.

every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@every_type
def test_a_kept_graph_gives_the_gradient_again(dtype):
    inputs = problem_set(width=40, neg=2, dtype=dtype)
    gen = inputs.gen.clone().requires_grad_()
    (once,) = torch.autograd.grad(DriftLoss()(gen, inputs.pos, inputs.neg), gen)
    value = DriftLoss()(gen, inputs.pos, inputs.neg)
    grads = [torch.autograd.grad(value, gen, retain_graph=keep)[0] for keep in (True, True, False)]
    assert all(torch.equal(grad, once) for grad in grads)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, gen)


@every_type
def test_gradients_add_up_and_do_not_share_memory(dtype):
    inputs = problem_set(dtype=dtype)
    gen = inputs.gen.clone().requires_grad_()
    value = DriftLoss()(gen, inputs.pos)
    seen = []
    gen.register_hook(seen.append)
    value.backward(retain_graph=True)
    first = gen.grad.clone()
    value.backward()
    torch.testing.assert_close(gen.grad, 2 * first, rtol=0, atol=0)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_losses_of_sets_side_by_side_can_be_differentiated_one_by_one(order):
    sets = [problem_set(batch=2, seed=k, dtype=torch.float32) for k in range(3)]
    gens = [inputs.gen.clone().requires_grad_() for inputs in sets]
    joint = [replace(inputs, gen=gen) for inputs, gen in zip(sets, gens, strict=True)]
    losses = DriftLoss().joint_losses(joint)
    for k in order:
        losses[k].sum().backward()
    for gen, inputs in zip(gens, sets, strict=True):
        gradient = terms_and_gradient(DriftLoss(), inputs)[1]
        torch.testing.assert_close(gen.grad, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))


def test_the_backward_pass_leaves_the_terms_as_they_were():
    inputs = problem_set(dtype=torch.float32)
    gen = inputs.gen.clone().requires_grad_()
    terms = DriftLoss().terms(gen, inputs.pos)
    drift, loss = terms.drift.clone(), terms.loss.detach().clone()
    terms.loss.sum().backward()
    assert torch.equal(terms.drift, drift) and torch.equal(terms.loss.detach(), loss)


def test_saved_tensors_may_be_kept_elsewhere():
    inputs = problem_set(dtype=torch.float32)
    results = []
    for hooks in (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        gen = inputs.gen.clone().requires_grad_()
        with hooks:
            value = DriftLoss()(gen, inputs.pos)
        value.backward(retain_graph=True)
        results.append(gen.grad.clone())
        gen.grad = None
        value.backward()
        results.append(gen.grad)
    gen = inputs.gen.clone().requires_grad_()
    DriftLoss()(gen, inputs.pos).backward()
    assert all(torch.equal(gradient, gen.grad) for gradient in results)


# Memory layout.


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values under other strides."""
    wide = torch.full((*x.shape[:2], 2 * x.shape[2] + 3), float("nan"), dtype=x.dtype)
    wide[..., 1 : 2 * x.shape[2] : 2] = x
    long = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2]), float("nan"), dtype=x.dtype)
    long[:, 1:-1] = x
    return {
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "problems last": x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "every other feature": wide[..., 1 : 2 * x.shape[2] : 2],
        "rows of a longer block": long[:, 1:-1],
        "unaligned": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "requires grad": x.clone().requires_grad_(),
    }


every_layout = pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1)))


KINDS = {"small": (6, torch.float32), "wide": (200, torch.float32), "float64": (40, torch.float64)}


@every_layout
@pytest.mark.parametrize(("width", "dtype"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("name", ["gen", "pos", "neg", "self_ref"])
def test_strides_do_not_change_a_bit(name, width, dtype, layout):
    """Compiled steps read memory by pointers."""
    inputs = problem_set(batch=3, gen=8, pos=9, neg=4, ref=5 if name == "self_ref" else 0, width=width, dtype=dtype)
    given = as_arguments(inputs)
    other = given | {name: layouts(given[name])[layout]}
    assert torch.equal(drift_field(**other), drift_field(**given))
    loss = DriftLoss()
    assert torch.equal(loss.terms(**other).drift, loss.terms(**given).drift)


@pytest.mark.parametrize(("width", "dtype"), KINDS.values(), ids=KINDS.keys())
def test_expanded_samples_and_weights_are_the_same_as_copies(width, dtype):
    inputs = problem_set(batch=3, gen=8, pos=9, neg=4, width=width, dtype=dtype)
    pos, neg = inputs.pos[:1].expand(3, -1, -1), inputs.neg[:, :1].expand(-1, 4, -1)
    weights = {"neg_weight": torch.tensor([0.5, 2.0, 1.0]), "pos_weight": torch.rand(9).expand(3, 9)}
    copied = {name: weight.clone() for name, weight in weights.items()}
    assert torch.equal(
        drift_field(inputs.gen, pos, neg, **weights), drift_field(inputs.gen, pos.clone(), neg.clone(), **copied)
    )
    assert torch.equal(
        DriftLoss()(inputs.gen, pos, neg, **weights), DriftLoss()(inputs.gen, pos.clone(), neg.clone(), **copied)
    )


@every_layout
def test_the_gradient_reaches_strided_samples(layout):
    inputs = problem_set(width=40)
    leaf = inputs.gen.clone().requires_grad_()
    strided = layouts(leaf)[layout] if layout != "requires grad" else leaf
    DriftLoss()(strided, inputs.pos).backward()
    plain = inputs.gen.clone().requires_grad_()
    DriftLoss()(plain, inputs.pos).backward()
    assert leaf.grad is not None or layout == "requires grad"
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-12, atol=0)
