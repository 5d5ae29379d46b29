"""A temperature that is learned: its objective, the gradient in closed form, and how it lives beside the generator."""

import math

import pytest
import torch
from plain_formulas import plain_distance

import drifting.problems
from drifting import DriftLoss
from drifting.arguments import DriftInputs
from drifting.learned_temperature import LearnedTemperature
from drifting.scales import Extent
from drifting.walks import Normalization

RAW = Normalization(features=False)


def inputs(*, neg: int = 0, ref: int = 0, weighted: bool = False, batch: int = 3) -> DriftInputs:
    rng = torch.Generator().manual_seed(0)

    def cloud(count: int, shift: float) -> torch.Tensor | None:
        return torch.randn(batch, count, 3, generator=rng, dtype=torch.float64) + shift if count else None

    def weight(count: int) -> torch.Tensor | None:
        return 0.2 + 2 * torch.rand(batch, count, generator=rng, dtype=torch.float64) if weighted and count else None

    return DriftInputs(
        gen=cloud(4, 0.0),
        pos=cloud(5, 0.7),
        neg=cloud(neg, -0.4),
        self_ref=cloud(ref, 0.2),
        gen_weight=weight(ref or 4),
        pos_weight=weight(5),
        neg_weight=weight(neg),
    )


def plain_loss(given: DriftInputs, temperature: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """-mean_b max_i log sum_pos w k / sum_all w k, sample by sample; `scale` divides distances, [] or [B, G, 1]."""
    own = given.gen if given.self_ref is None else given.self_ref
    blocks = [(own, given.gen_weight), (given.neg, given.neg_weight), (given.pos, given.pos_weight)]
    blocks = [(x, torch.ones(x.shape[:2], dtype=x.dtype) if w is None else w) for x, w in blocks if x is not None]
    refs, weight = torch.cat([x for x, _ in blocks], dim=1), torch.cat([w for _, w in blocks], dim=1)
    distance = plain_distance(given.gen, refs).clamp(min=1e-4) / scale
    num_negative = refs.shape[1] - given.pos.shape[1]
    best = []
    for b in range(len(given.gen)):
        shares = []
        for i in range(given.gen.shape[1]):
            kernel = weight[b] * (-distance[b, i] / temperature).exp()
            seen = torch.ones_like(kernel)
            if given.self_ref is None:
                seen[i] = 0
            shares.append((kernel[num_negative:].sum() / (kernel * seen).sum()).log())
        best.append(torch.stack(shares).max())
    return -torch.stack(best).mean()


def double(start: float) -> LearnedTemperature:
    return LearnedTemperature(start).double()


CASES = {
    "plain": inputs(),
    "negatives": inputs(neg=3, weighted=True),
    "second batch": inputs(ref=6, weighted=True),
}
every_case = pytest.mark.parametrize("given", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize("start", [0.05, 0.5, 3.0])
def test_value_and_gradient_equal_the_plain_formula(given, start):
    temperature = double(start)
    value = temperature.loss(given, RAW)
    value.backward()
    log_tau = torch.tensor(math.log(start), dtype=torch.float64, requires_grad=True)
    expected = plain_loss(given, log_tau.exp())
    expected.backward()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-6, atol=1e-12)  # of float32's log(start)
    torch.testing.assert_close(temperature.log_temperature.grad, log_tau.grad, rtol=1e-6, atol=1e-12)


@every_case
def test_gradient_equals_central_differences(given):
    temperature = double(0.4)
    temperature.loss(given, RAW).backward()
    step, values = 1e-5, []
    for sign in (1, -1):
        moved = double(0.4)
        with torch.no_grad():
            moved.log_temperature += sign * step
        values.append(moved.loss(given, RAW).item())
    slope = (values[0] - values[1]) / (2 * step)
    assert temperature.log_temperature.grad.item() == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("extent", Extent, ids=lambda extent: extent.value)
def test_distances_are_those_that_the_drifting_loss_sees(extent):
    """Divided by the mean distance of the batch, of the problem or of the sample."""
    given = inputs(neg=3, weighted=True)
    loss = DriftLoss(feature_extent=extent)
    weight = torch.cat([given.gen_weight, given.neg_weight, given.pos_weight], dim=1)[:, None].expand(-1, 4, -1)
    refs = torch.cat([given.gen, given.neg, given.pos], dim=1)
    distance = plain_distance(given.gen, refs).clamp(min=1e-4)
    match extent:
        case Extent.BATCH:
            scale = (distance * weight).mean() / weight.mean()
        case Extent.PROBLEM:
            scale = (distance * weight).mean((1, 2), keepdim=True) / weight.mean((1, 2), keepdim=True)
        case Extent.SAMPLE:
            seen = weight.clone()
            seen[..., 4:7] = 0
            seen[:, range(4), range(4)] = 0
            scale = (distance * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    temperature = double(0.5)
    torch.testing.assert_close(
        temperature.loss(given, loss.normalization),
        plain_loss(given, temperature().detach(), scale),
        rtol=1e-10,
        atol=1e-12,
    )


def test_the_objective_does_not_depend_on_the_size_of_a_block(monkeypatch):
    given = inputs(neg=3, weighted=True, batch=7)
    results = []
    for memory in (4 * 2**20, 1):
        monkeypatch.setattr(drifting.problems, "CPU_BLOCK", memory)
        temperature = double(0.5)
        value = temperature.loss(given, DriftLoss().normalization)
        value.backward()
        results.append((value.item(), temperature.log_temperature.grad.item()))
    assert results[0] == pytest.approx(results[1], rel=1e-12)


@pytest.mark.parametrize("width", [3, 200])
def test_float32_equals_float64(width):
    rng = torch.Generator().manual_seed(0)
    gen, pos = (torch.randn(3, n, width, generator=rng) for n in (8, 9))
    results = []
    for x, y in ((gen, pos), (gen.double(), pos.double()), (gen.bfloat16(), pos)):
        temperature = LearnedTemperature(0.3)
        value = temperature.loss(DriftInputs(x, y), DriftLoss().normalization)
        value.backward()
        results.append((value.item(), temperature.log_temperature.grad.item()))
        assert temperature.log_temperature.grad.dtype == torch.float32
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert results[0] == pytest.approx(results[2], rel=0.05)


def test_only_the_temperature_receives_a_gradient():
    given = inputs(neg=3, ref=6)
    blocks = [given.gen, given.pos, given.neg, given.self_ref]
    for block in blocks:
        block.requires_grad_()
    temperature = double(0.5)
    temperature.loss(given, DriftLoss().normalization).backward()
    assert temperature.log_temperature.grad != 0
    assert all(block.grad is None for block in blocks)


def test_the_drifting_loss_gives_the_temperature_no_gradient():
    temperature = double(0.5)
    given = inputs()
    gen = given.gen.clone().requires_grad_()
    DriftLoss((temperature,))(gen, given.pos).backward()
    assert gen.grad is not None and temperature.log_temperature.grad is None


# Where it goes.


def descend(given: DriftInputs, start: float, steps: int = 60) -> float:
    temperature = double(start)
    optimizer = torch.optim.Adam(temperature.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        temperature.loss(given, RAW).backward()
        optimizer.step()
    return temperature().item()


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float64)[None, :, None]


def test_it_rises_where_positives_are_out_of_sight():
    assert descend(DriftInputs(line(0.0, 0.1, 0.2), line(5.0, 6.0)), 0.3) > 1.0


def test_it_falls_where_positives_are_the_nearest():
    assert descend(DriftInputs(line(0.0, 3.0, 6.0), line(0.01, 3.01, 5.99)), 1.0) < 0.5


def test_it_falls_to_whatever_the_best_sample_of_a_problem_sees():
    """The maximum over samples: one sample among the data is enough, however far the others are."""
    alone = DriftInputs(line(0.0, 0.1, 0.2), line(5.0, 6.0))
    with_one_at_home = DriftInputs(line(0.0, 0.1, 4.99), line(5.0, 6.0))
    assert descend(with_one_at_home, 0.3) < 0.3 < descend(alone, 0.3)


# Beside the generator.


def test_its_parameter_belongs_to_the_loss_and_trains_in_a_group_of_its_own():
    temperature = LearnedTemperature(0.5)
    loss = DriftLoss((0.1, temperature))
    assert [id(p) for p in loss.parameters()] == [id(temperature.log_temperature)]
    model = torch.nn.Linear(2, 3)
    groups = [
        {"params": model.parameters()},
        {"params": temperature.parameters(), "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    noise, pos = torch.randn(2, 8, 2, generator=rng), torch.randn(2, 8, 3, generator=rng) + 4
    before, weight = temperature().item(), model.weight.detach().clone()
    for _ in range(3):
        given = DriftInputs(model(noise), pos)
        total = loss(given.gen, given.pos) + temperature.loss(given, loss.normalization)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    # Adam's first steps have the length of the learning rate.
    assert abs(math.log(temperature().item() / before)) == pytest.approx(3e-2, rel=0.05)
    assert not torch.equal(model.weight, weight)
    assert loss.terms(model(noise), pos).drift_rms.shape == (2,)


def test_the_drifting_loss_follows_the_temperature():
    given = inputs()
    temperature = LearnedTemperature(0.5)
    loss = DriftLoss((temperature,))
    with torch.no_grad():
        temperature.log_temperature.fill_(math.log(0.2))
    followed = loss.terms(given.gen, given.pos).drift
    torch.testing.assert_close(followed, DriftLoss((0.2,)).terms(given.gen, given.pos).drift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict_type", [torch.float32, torch.float64], ids=str)
def test_checkpoints_hold_it(tmp_path, strict_type):
    loss = DriftLoss((LearnedTemperature(0.37), 0.1, LearnedTemperature(2.0))).to(strict_type)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    fresh = DriftLoss((LearnedTemperature(), 0.1, LearnedTemperature())).to(strict_type)
    fresh.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert [fresh.temperatures[k]().item() for k in (0, 2)] == [loss.temperatures[k]().item() for k in (0, 2)]
    assert fresh.temperatures[0]().item() == pytest.approx(0.37, rel=1e-6)


@pytest.mark.parametrize("start", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_start_is_refused(start):
    with pytest.raises(ValueError, match=f"LearnedTemperature: start must be finite and > 0, got {start}"):
        LearnedTemperature(start)


def test_printing_shows_the_value():
    assert "LearnedTemperature(0.25)" in repr(DriftLoss((LearnedTemperature(0.25),)))
