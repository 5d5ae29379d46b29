"""The defaults return the numbers of the authors' released code.

tests/golden/drift_loss.npz holds random inputs and the outputs of the function `drift_loss` of lambertae/drifting at
commit accd0cf, run unmodified (JAX) on a CPU in float32: loss per problem, gradient of its mean, and the reported scale
and mean squared force of each temperature. Seven cases: without and with extra negatives, with guidance weights, one
temperature, features far from unit scale, and two degenerate batches.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from drifting import DriftLoss, DriftTerms

FILE = Path(__file__).parents[1] / "golden" / "drift_loss.npz"
CASES = ("basic_noneg", "neg_unweighted", "cfg_weighted", "single_R", "large_scale", "collapsed_gen", "tiny_scale")


def golden(case: str) -> dict[str, torch.Tensor]:
    with np.load(FILE) as arrays:
        return {k.split("/", 1)[1]: torch.from_numpy(arrays[k]) for k in arrays.files if k.split("/")[0] == case}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def evaluate(case: dict[str, torch.Tensor]) -> tuple[DriftTerms, torch.Tensor]:
    gen = case["gen"].requires_grad_()
    neg = case["neg"] if case["neg"].shape[1] else None
    terms = DriftLoss(temperatures=tuple(case["R_list"].tolist())).terms(
        gen,
        case["pos"],
        neg,
        gen_weight=case.get("weight_gen"),
        pos_weight=case.get("weight_pos"),
        neg_weight=None if neg is None else case.get("weight_neg"),
    )
    terms.loss.mean().backward()
    return terms, gen.grad


def test_the_file_holds_exactly_the_cases_tested_here():
    with np.load(FILE) as arrays:
        assert {name.split("/")[0] for name in arrays.files} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_authors_code(name):
    case = golden(name)
    terms, gradient = evaluate(case)
    collapsed = name == "collapsed_gen"  # their distances are rounding of dot products there
    assert relative(terms.loss.detach(), case["loss"]) <= (2e-3 if collapsed else 2e-6)
    assert relative(gradient, case["grad_of_mean_loss"]) <= (2e-3 if collapsed else 2e-5)


@pytest.mark.parametrize("name", CASES)
def test_scale_and_mean_squared_drift_equal_the_authors_code(name):
    case = golden(name)
    terms, _ = evaluate(case)
    assert relative(terms.scale, case["info/scale"]) <= 1e-5
    for rms, temperature in zip(terms.drift_rms, case["R_list"].tolist(), strict=True):
        assert relative(rms**2, case[f"info/loss_{temperature:g}"]) <= 5e-5


def test_width_zero_negatives_equal_none():
    case = golden("basic_noneg")
    loss = DriftLoss()
    with_empty = loss(case["gen"], case["pos"], case["neg"])
    assert torch.equal(with_empty, loss(case["gen"], case["pos"]))
