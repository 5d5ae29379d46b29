"""Every wrong argument is refused with its name, what was expected and what came."""

import math

import pytest
import torch

from drifting import DriftLoss, MeanShift, Sinkhorn, drift_field

B, G, P, N, D = 2, 4, 5, 3, 6
GIVEN = {"gen": (B, G, D), "pos": (B, P, D), "neg": (B, N, D)}


def arguments(**changed) -> dict[str, torch.Tensor | None]:
    """Arguments that fit, but for those changed: a shape or a tensor (None leaves one out)."""
    merged = GIVEN | changed
    return {
        name: value if isinstance(value, torch.Tensor | None) else torch.randn(value) for name, value in merged.items()
    }


CASES = {
    "gen not 3-D": ({"gen": (G, D)}, r"gen must be a float tensor \[B, G, D\], got torch.float32 \(4, 6\)"),
    "gen integer": ({"gen": torch.ones(B, G, D, dtype=torch.int64)}, r"gen must be a float tensor .*torch.int64"),
    "gen without problems": ({"gen": (0, G, D)}, r"B, G and D of at least one, got \(0, 4, 6\)"),
    "gen without features": ({"gen": (B, G, 0)}, r"B, G and D of at least one, got \(2, 4, 0\)"),
    "gen of one sample": ({"gen": (B, 1, D)}, r"G >= 2 samples per problem, got \(2, 1, 6\).*pass self_ref"),
    "gen of no sample": ({"gen": (B, 0, D), "self_ref": (B, 3, D)}, r"at least one, got \(2, 0, 6\)"),
    "pos of other B": ({"pos": (3, P, D)}, r"pos must be \[B, P, D\] with B=2, D=6 .*got \(3, 5, 6\)"),
    "pos of other D": ({"pos": (B, P, 7)}, r"pos must be \[B, P, D\] with B=2, D=6 .*got \(2, 5, 7\)"),
    "pos that would broadcast": ({"pos": (1, P, D)}, r"pos must be .*got \(1, 5, 6\)"),
    "pos not 3-D": ({"pos": (B, D)}, r"pos must be .*got \(2, 6\)"),
    "pos empty": ({"pos": (B, 0, D)}, r"pos must hold at least one positive per problem, got \(2, 0, 6\)"),
    "pos integer": ({"pos": torch.ones(B, P, D, dtype=torch.uint8)}, "pos must be a float tensor, got torch.uint8"),
    "pos elsewhere": ({"pos": torch.ones(B, P, D, device="meta")}, "pos must be on gen's device cpu, got meta"),
    "neg of other B": ({"neg": (3, N, D)}, r"neg must be \[B, N, D\] with B=2, D=6 .*got \(3, 3, 6\)"),
    "neg of other D": ({"neg": (B, N, 1)}, r"neg must be .*got \(2, 3, 1\)"),
    "neg integer": ({"neg": torch.ones(B, N, D, dtype=torch.int32)}, "neg must be a float tensor, got torch.int32"),
    "neg elsewhere": ({"neg": torch.ones(B, N, D, device="meta")}, "neg must be on gen's device cpu, got meta"),
    "self_ref of other B": ({"self_ref": (1, 7, D)}, r"self_ref must be \[B, G', D\] .*got \(1, 7, 6\)"),
    "self_ref of other D": ({"self_ref": (B, 7, 5)}, r"self_ref must be .*got \(2, 7, 5\)"),
    "self_ref empty": ({"self_ref": (B, 0, D)}, r"self_ref must hold at least one sample .*got \(2, 0, 6\)"),
    "self_ref integer": ({"self_ref": torch.ones(B, 7, D).long()}, "self_ref must be a float tensor, got torch.int64"),
    "self_ref elsewhere": ({"self_ref": torch.ones(B, 7, D, device="meta")}, "self_ref must be on gen's device cpu"),
    "weight without neg": ({"neg": None, "neg_weight": torch.ones(B)}, "neg_weight was given without neg"),
    "gen_weight shape": ({"gen_weight": torch.ones(B, G + 1)}, r"gen_weight must be \[2, 4\] or \[2\], got \(2, 5\)"),
    "gen_weight of self_ref": (
        {"self_ref": (B, 7, D), "gen_weight": torch.ones(B, G)},
        r"gen_weight must be \[2, 7\] or \[2\], got \(2, 4\)",
    ),
    "pos_weight shape": ({"pos_weight": torch.ones(P)}, r"pos_weight must be \[2, 5\] or \[2\], got \(5,\)"),
    "neg_weight shape": ({"neg_weight": torch.ones(B, 1)}, r"neg_weight must be \[2, 3\] or \[2\], got \(2, 1\)"),
    "weight 0-D": ({"pos_weight": torch.tensor(1.0)}, r"pos_weight must be \[2, 5\] or \[2\], got \(\)"),
    "weight elsewhere": (
        {"pos_weight": torch.ones(B, device="meta")},
        "pos_weight must be on the samples' device cpu, got meta",
    ),
} | {
    f"{name} {value}": (
        {name: torch.tensor([1.0, value])},
        rf"{name} must be finite and >= 0, got {value}",
    )
    for name in ("gen_weight", "pos_weight", "neg_weight")
    for value in (-1.0, math.nan, math.inf)
}


@pytest.mark.parametrize(("changed", "message"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("call", [DriftLoss(), DriftLoss().terms, drift_field], ids=["loss", "terms", "field"])
def test_wrong_samples_and_weights_are_refused(call, changed, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments(**changed))


def test_the_arguments_of_the_cases_fit_as_they_are():
    assert DriftLoss()(**arguments()).isfinite()
    assert DriftLoss()(**arguments(neg=None, gen=(B, 1, D), self_ref=(B, 1, D))).isfinite()
    assert DriftLoss()(**arguments(gen_weight=torch.zeros(B), pos_weight=torch.zeros(B, P))).isfinite()


@pytest.mark.parametrize("temperatures", [(), (0.0,), (0.1, -0.1), (math.nan,), (math.inf,), [0.1, 0.0]])
def test_temperatures_must_be_finite_and_positive(temperatures):
    with pytest.raises(ValueError, match=r"temperatures must be finite and > 0, and at least one, got \("):
        DriftLoss(temperatures=temperatures)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_one_temperature_must_be_finite_and_positive(temperature):
    with pytest.raises(ValueError, match="temperatures must be finite and > 0"):
        drift_field(**arguments(), temperature=temperature)


@pytest.mark.parametrize("name", ["floor", "attraction", "repulsion"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_field_settings_must_be_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"MeanShift: {name} must be finite and >= 0, got {value}"):
        MeanShift(**{name: value})


def test_mask_self_is_a_setting_of_mean_shift_only():
    with pytest.raises(ValueError, match=r"mask_self=False applies to MeanShift fields only, got field=Sinkhorn\("):
        drift_field(**arguments(self_ref=(B, 7, D)), field=Sinkhorn(), mask_self=False)
