"""What is timed is the drifting loss: the transcription by the plain formulas, the candidates by their gradient."""

import pytest
import torch
from plain_formulas import official_drift_loss

from benchmarks.implementations import IMPLEMENTATIONS, reference_gradient
from benchmarks.official_torch import TEMPERATURES, official_loss
from benchmarks.problem import Problem, Shape, draw

SHAPES = [Shape(3, 5, 4, 2, 6), Shape(2, 2, 1, 0, 3), Shape(1, 7, 3, 1, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transcription_is_the_plain_formula(shape):
    gen, pos, neg, _ = draw(shape, seed=1)
    gen, pos = gen.double().requires_grad_(), pos.double()
    neg = torch.empty(shape.B, 0, shape.D).double() if neg is None else neg.double()
    drawn = torch.rand(neg.shape[:2], generator=torch.Generator().manual_seed(2)).double()
    ones = [torch.ones(block.shape[:2]).double() for block in (gen, pos)]
    plain = official_drift_loss(gen.detach(), pos, neg, *ones, drawn, TEMPERATURES)

    loss = official_loss(gen, pos, neg, drawn) if shape.N else official_loss(gen, pos)
    loss.backward()
    torch.testing.assert_close(loss, plain.loss.mean())
    torch.testing.assert_close(gen.grad, -2 * plain.drift / (gen.numel() * plain.unit))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["ours", "transcription"])
def test_candidates_return_the_gradient(name, shape):
    problem = draw(shape)
    evaluation = IMPLEMENTATIONS[name](problem)
    expected = reference_gradient(problem)
    for _ in range(2):  # a run leaves nothing behind that changes the next
        gradient = evaluation.gradient(evaluation.run()).double()
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_the_reference_is_float64_and_problems_are_reproducible():
    problem, again = draw(SHAPES[0], seed=3), draw(SHAPES[0], seed=3)
    assert reference_gradient(problem).dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(problem, again, strict=True))
    assert not torch.equal(problem.gen, draw(SHAPES[0], seed=4).gen)
    assert draw(SHAPES[1])[2:] == (None, None)
    assert isinstance(problem, Problem)


def test_shapes_are_read_as_they_are_passed():
    shape = Shape.parse("64,8,1,0,112")
    assert shape == Shape(B=64, G=8, P=1, N=0, D=112)
    assert shape.gen_bytes == draw(shape).gen.numel() * 4
