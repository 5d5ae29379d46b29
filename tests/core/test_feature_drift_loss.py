"""FeatureDriftLoss is a plain sum over features of a mean over problems and locations."""

import pytest
import torch
from torch import nn

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, Sinkhorn


class TwoFeatures(nn.Module):
    """Samples [K, 4, 6] -> {"a": [K, 3, 5], "b": [K, 1, 7]}, of very different scales."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(4, 6, 3, 5, generator=rng, dtype=torch.float64), requires_grad=False)
        self.b = nn.Parameter(100 * torch.randn(4, 6, 1, 7, generator=rng, dtype=torch.float64), requires_grad=False)

    def forward(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: torch.einsum("kxy,xyfd->kfd", samples, weight).tanh() * size
            for name, weight, size in (("a", self.a, 1.0), ("b", self.b, 50.0))
        }


def samples(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, n, 4, 6, generator=rng, dtype=torch.float64) * 0.1 for n in (4, 5, 3))


def by_hand(encoder, loss, gen, pos, neg=None, neg_weight=None) -> torch.Tensor:
    """One drift problem per key, label and location, written as loops; normalisers shared within a key."""
    total = torch.zeros((), dtype=torch.float64)
    for key in ("a", "b"):
        problems, weights = {"gen": [], "pos": [], "neg": []}, []
        for b in range(gen.shape[0]):
            features = {"gen": encoder(gen[b])[key], "pos": encoder(pos[b])[key]}
            if neg is not None:
                features["neg"] = encoder(neg[b])[key]
            for location in range(features["gen"].shape[1]):
                for name, feature in features.items():
                    problems[name].append(feature[:, location])
                if neg_weight is not None:
                    weights.append(neg_weight[b])
        total = total + loss(
            torch.stack(problems["gen"]),
            torch.stack(problems["pos"]),
            torch.stack(problems["neg"]) if neg is not None else None,
            neg_weight=torch.stack(weights) if weights else None,
        )
    return total


@pytest.mark.parametrize("weight_shape", [None, (2,), (2, 3)], ids=["no weight", "per problem", "per sample"])
def test_equals_a_loop_over_keys_problems_and_locations(weight_shape):
    encoder, loss = TwoFeatures(), DriftLoss()
    gen, pos, neg = samples()
    weight = None if weight_shape is None else torch.rand(weight_shape, generator=torch.Generator().manual_seed(2))
    x, y = gen.clone().requires_grad_(), gen.clone().requires_grad_()
    value = FeatureDriftLoss(encoder, loss)(x, pos, neg, neg_weight=weight)
    expected = by_hand(encoder, loss, y, pos, neg, weight)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-8, atol=1e-10 * float(y.grad.abs().max()))


def test_without_negatives():
    encoder, loss = TwoFeatures(), DriftLoss(field=MeanShift(floor=0.0))
    gen, pos, _ = samples()
    value = FeatureDriftLoss(encoder, loss)(gen, pos)
    torch.testing.assert_close(value, by_hand(encoder, loss, gen, pos), rtol=1e-10, atol=0)


def test_rows_of_the_terms_are_problem_major_and_locations_share_one_scale():
    encoder = TwoFeatures()
    gen, pos, _ = samples()
    terms = FeatureDriftLoss(encoder, DriftLoss(normalize_drift=False, normalize_features=False)).terms(gen, pos)
    assert {key: term.loss.shape for key, term in terms.items()} == {"a": (6,), "b": (2,)}
    assert terms["a"].scale.ndim == 0
    one = DriftLoss(normalize_drift=False, normalize_features=False).terms(
        encoder(gen[1])["a"][None, :, 2], encoder(pos[1])["a"][None, :, 2]
    )
    torch.testing.assert_close(terms["a"].drift[1 * 3 + 2], one.drift[0])
    distances = [
        torch.cdist(encoder(gen[b])["a"][:, f], torch.cat([encoder(gen[b])["a"][:, f], encoder(pos[b])["a"][:, f]]))
        for b in range(2)
        for f in range(3)
    ]
    torch.testing.assert_close(terms["a"].scale, torch.stack(distances).clamp(min=1e-4).mean(), rtol=1e-9, atol=0)


def test_gradient_reaches_gen_through_the_encoder_and_nothing_else():
    encoder = TwoFeatures()
    gen, pos, neg = (block.requires_grad_() for block in samples())
    FeatureDriftLoss(encoder, DriftLoss())(gen, pos, neg, neg_weight=torch.ones(2)).backward()
    assert gen.grad.abs().max() > 0
    assert pos.grad is None and neg.grad is None
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_positives_are_encoded_without_a_graph():
    modes = []

    def encoder(block: torch.Tensor) -> dict[str, torch.Tensor]:
        modes.append(torch.is_grad_enabled())
        return {"raw": block.flatten(1)[:, None]}

    gen, pos, neg = samples()
    FeatureDriftLoss(encoder, DriftLoss())(gen, pos, neg)
    assert modes == [True, False, False]


def test_raw_samples_as_the_only_feature_are_the_plain_loss():
    gen, pos, neg = samples()
    loss = DriftLoss()
    feature_loss = FeatureDriftLoss(lambda block: {"global": block.flatten(1)[:, None]}, loss)
    plain = loss(gen.flatten(2), pos.flatten(2), neg.flatten(2))
    torch.testing.assert_close(feature_loss(gen, pos, neg), plain)


def flat(block: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"raw": block.flatten(1)[:, None]}


@pytest.mark.parametrize(
    ("encoder", "shapes", "weight", "message"),
    [
        (flat, [(2, 4, 6), (3, 5, 6), None], None, r"pos must be \[B, K, \*S\] with B=2, S=\(6,\).*got \(3, 5, 6\)"),
        (flat, [(2, 4, 6), (2, 5, 7), None], None, r"pos must be .*got \(2, 5, 7\)"),
        (flat, [(2, 4, 6), (2, 5, 6), (1, 3, 6)], None, r"neg must be .*got \(1, 3, 6\)"),
        (flat, [(2, 1, 6), (2, 5, 6), None], None, "G >= 2 samples per problem"),
        (flat, [(2, 4, 6), (2, 5, 6), None], (2,), "neg_weight was given without neg"),
        (flat, [(2, 4, 6), (2, 5, 6), (2, 3, 6)], (2, 4), "neg_weight must be"),
        (lambda block: {}, [(2, 4, 6), (2, 5, 6), None], None, r"encoder returned no feature.*\{key: \[K, F, D\]\}"),
        (lambda b: {"x": b.flatten(1)}, [(2, 4, 6), (2, 5, 6), None], None, r"K=8, got 'x': \(8, 6\)"),
        (lambda b: {"x": b[:1, None]}, [(2, 4, 6), (2, 5, 6), None], None, r"K=8, got 'x': \(1, 1, 6\)"),
    ],
)
def test_refusals_name_what_is_wrong(encoder, shapes, weight, message):
    gen, pos, neg = (None if shape is None else torch.randn(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        FeatureDriftLoss(encoder, DriftLoss())(gen, pos, neg, neg_weight=None if weight is None else torch.ones(weight))


def test_an_independent_second_batch_repels_in_place_of_the_samples():
    encoder, loss = TwoFeatures(), DriftLoss((0.1,), field=Sinkhorn())
    gen, pos, ref = samples()
    value = FeatureDriftLoss(encoder, loss)(gen, pos, self_ref=ref)
    total = torch.zeros((), dtype=torch.float64)
    for key in ("a", "b"):
        blocks = [
            torch.stack(
                [encoder(block[b])[key][:, f] for b in range(2) for f in range(encoder(block[b])[key].shape[1])]
            )
            for block in (gen, pos, ref)
        ]
        total = total + loss(blocks[0], blocks[1], self_ref=blocks[2])
    torch.testing.assert_close(value, total)
    with pytest.raises(ValueError, match=r"self_ref must be \[B, K, \*S\] with B=2"):
        FeatureDriftLoss(encoder, loss)(gen, pos, self_ref=ref[:1])


# Features of references, computed once.


def test_encoded_references_are_the_same_as_samples():
    encoder = TwoFeatures()
    gen, pos, neg = samples()
    ref = gen.flip(1) * 0.9
    loss = FeatureDriftLoss(encoder, DriftLoss())
    kept = {name: loss.encode(block) for name, block in (("pos", pos), ("neg", neg), ("self_ref", ref))}
    assert {key: tuple(feature.shape) for key, feature in kept["pos"].items()} == {"a": (6, 5, 5), "b": (2, 5, 7)}
    weight = torch.tensor([0.5, 2.0])
    x, y = gen.clone().requires_grad_(), gen.clone().requires_grad_()
    value = loss(x, kept["pos"], kept["neg"], self_ref=kept["self_ref"], neg_weight=weight)
    expected = loss(y, pos, neg, self_ref=ref, neg_weight=weight)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected) and torch.equal(x.grad, y.grad)
    mixed = loss.terms(gen, kept["pos"], neg, self_ref=ref, neg_weight=weight)
    for key, term in loss.terms(gen, pos, kept["neg"], self_ref=kept["self_ref"], neg_weight=weight).items():
        assert torch.equal(term.drift, mixed[key].drift)


def test_encoding_records_no_graph_and_counts_no_sample_twice():
    calls = []

    def encoder(block: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append((len(block), torch.is_grad_enabled()))
        return {"raw": 2 * block.flatten(1)[:, None]}

    gen, pos, neg = samples()
    loss = FeatureDriftLoss(encoder, DriftLoss())
    kept = loss.encode(pos.requires_grad_())
    assert not kept["raw"].requires_grad
    for _ in range(2):
        loss(gen, kept, neg)
    assert calls == [(10, False), (8, True), (6, False), (8, True), (6, False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_features_in_half_precision_are_computed_in_float32(dtype):
    """They may be stored so; what is lost is their rounding and nothing more."""
    encoder = TwoFeatures().float()
    gen, pos, neg = (block.float() for block in samples())
    loss = FeatureDriftLoss(encoder, DriftLoss())
    stored = {key: feature.to(dtype) for key, feature in loss.encode(pos).items()}
    widened = {key: feature.float() for key, feature in stored.items()}
    assert torch.equal(loss(gen, stored, neg), loss(gen, widened, neg))

    half = FeatureDriftLoss(lambda block: {key: x.to(dtype) for key, x in encoder(block).items()}, DriftLoss())
    rounded = FeatureDriftLoss(
        lambda block: {key: x.to(dtype).float() for key, x in encoder(block).items()}, DriftLoss()
    )
    x, y = gen.clone().requires_grad_(), gen.clone().requires_grad_()
    one, other = half.terms(x, pos, neg), rounded.terms(y, pos, neg)
    for key, term in one.items():
        assert term.loss.dtype == torch.float32
        assert torch.equal(term.drift, other[key].drift)
    sum(term.loss.mean() for term in one.values()).backward()
    sum(term.loss.mean() for term in other.values()).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=2e-2 * float(y.grad.abs().max()))


# Several features at a time.


def many_features(block: torch.Tensor) -> dict[str, torch.Tensor]:
    """Twelve features of three widths and of 1, 2 and 4 locations, some of equal shape."""
    flat = block.flatten(1)
    return {
        f"{turn}_{width}": (flat.roll(turn, 1) * (turn + 1)).unflatten(1, (-1, width))
        for turn in range(4)
        for width in (6, 12, 24)
    }


def value_and_gradient(loss: FeatureDriftLoss, gen, *others, **named) -> tuple[torch.Tensor, torch.Tensor]:
    x = gen.clone().requires_grad_()
    value = loss(x, *others, **named)
    value.backward()
    return value.detach(), x.grad


BUDGETS = {"one at a time": 1, "a few": 5000, "default": 64 * 2**20, "all": None}


@pytest.mark.parametrize("with_ref", [False, True], ids=["own negatives", "second batch"])
def test_the_budget_does_not_change_the_result(with_ref):
    gen, pos, neg = samples()
    named = {"neg_weight": torch.tensor([0.5, 2.0]), "self_ref": gen.flip(1) * 0.9 if with_ref else None}
    results, lots = {}, {}
    for name, budget in BUDGETS.items():
        loss = DriftLoss()
        features = FeatureDriftLoss(many_features, loss, budget=budget)
        joint, lots[name] = loss.joint_losses, []
        loss.joint_losses = lambda sets, known, joint=joint, sizes=lots[name]: sizes.append(len(sets)) or joint(sets)
        results[name] = (*value_and_gradient(features, gen, pos, neg, **named), features.terms(gen, pos, neg, **named))
    assert lots["one at a time"] == [1] * 12 and lots["all"] == lots["default"] == [12]
    assert 1 < len(lots["a few"]) < 12 and sum(lots["a few"]) == 12
    value, gradient, terms = results["one at a time"]
    for other, other_gradient, other_terms in results.values():
        torch.testing.assert_close(other, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))
        assert list(other_terms) == list(terms)
        for key, term in terms.items():
            torch.testing.assert_close(other_terms[key].drift, term.drift, rtol=0, atol=1e-11)
            torch.testing.assert_close(other_terms[key].scale, term.scale, rtol=1e-12, atol=0)


def test_lots_do_not_depend_on_the_number_of_problems():
    """Ranks may have different numbers of them, and exchange statistics once for each lot."""
    lots = []
    for batch in (1, 2, 7):
        loss, sizes = DriftLoss(), []
        joint = loss.joint_losses
        loss.joint_losses = lambda sets, known, joint=joint, sizes=sizes: sizes.append(len(sets)) or joint(sets)
        gen, pos, _ = samples(batch)
        FeatureDriftLoss(many_features, loss, budget=5000)(gen, pos)
        lots.append(sizes)
    assert lots[0] == lots[1] == lots[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_features_are_the_same_as_one_by_one(dtype):
    gen, pos, neg = (block.to(dtype) for block in samples())
    weight = torch.tensor([0.5, 2.0])
    value, gradient = value_and_gradient(FeatureDriftLoss(many_features, DriftLoss()), gen, pos, neg, neg_weight=weight)
    terms = FeatureDriftLoss(many_features, DriftLoss()).terms(gen, pos, neg, neg_weight=weight)
    total, total_gradient = 0, 0
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for key in many_features(gen.flatten(0, 1)):
        alone = FeatureDriftLoss(lambda block, key=key: {key: many_features(block)[key]}, DriftLoss())
        one, one_gradient = value_and_gradient(alone, gen, pos, neg, neg_weight=weight)
        total, total_gradient = total + one, total_gradient + one_gradient
        torch.testing.assert_close(terms[key].loss.mean(), one, rtol=tolerance, atol=0)
    torch.testing.assert_close(value, total, rtol=tolerance, atol=0)
    bound = 10 * tolerance * float(gradient.abs().max())
    torch.testing.assert_close(gradient, total_gradient, rtol=0, atol=bound)


# Refusals.


@pytest.mark.parametrize("name", ["pos", "neg", "self_ref"])
@pytest.mark.parametrize(
    ("change", "different"),
    [
        (lambda features: {"a": features["a"]}, r"\['b'\]"),
        (lambda features: {**features, "c": features["a"]}, r"\['c'\]"),
        (lambda features: {"A": features["a"], "b": features["b"]}, r"\['A', 'a'\]"),
        (lambda features: {}, r"\['a', 'b'\]"),
    ],
    ids=["missing", "more", "misspelt", "empty"],
)
def test_features_of_other_keys_are_refused(name, change, different):
    gen, pos, _ = samples()
    loss = FeatureDriftLoss(TwoFeatures(), DriftLoss())
    given = {"pos": pos, name: change(loss.encode(pos))}
    with pytest.raises(
        ValueError, match=f"{name} must have the encoder's features; only one of the two has {different}"
    ):
        loss(gen, **given)


def test_features_of_another_number_of_problems_are_refused():
    gen, pos, _ = samples()
    loss = FeatureDriftLoss(TwoFeatures(), DriftLoss())
    with pytest.raises(ValueError, match=r"pos must be \[B, P, D\] with B=6, D=5"):
        loss(gen, loss.encode(pos[:1]))


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget must be at least 1 byte, or None for no limit, got {budget}"):
        FeatureDriftLoss(TwoFeatures(), DriftLoss(), budget=budget)


def test_encoded_features_ask_for_no_gradient_even_from_an_encoder_of_views():
    samples = torch.randn(2, 3, 4, requires_grad=True)
    loss = FeatureDriftLoss(lambda x: {"view": x[:, None, :]}, DriftLoss())
    assert not loss.encode(samples)["view"].requires_grad
