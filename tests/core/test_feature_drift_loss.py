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
