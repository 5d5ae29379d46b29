"""Counts against the paper's figures and hand counts, the arithmetic of the estimates, and a whole quick run."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import scaling
from benchmarks.scaling_estimate import Estimate, Machine, Plan, best, estimate, fitting_plans, memory, place, seconds
from benchmarks.scaling_memory import LiveBytes, Options, part_peak, state
from benchmarks.scaling_recipes import QUICK, RECIPES, Recipe, build_encoder, skeleton, work
from benchmarks.scaling_traffic import Exchange, gradient_exchange, loss_exchange, totals

(RECIPE,) = QUICK
LEAST, KEEP_ALL = Options(), Options(checkpoint_encoder=False, checkpoint_generator=False)
MACHINE = Machine()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_networks_are_the_papers():
    by_name = {recipe.name: recipe for recipe in RECIPES}
    assert parameters(skeleton(by_name["latent L/2"])) == 462_909_456
    assert parameters(skeleton(by_name["pixel B/16"])) == 133_864_704
    assert parameters(build_encoder(by_name["latent L/2"])) == 2_126_036_480
    pixel = parameters(build_encoder(by_name["pixel L/16"]))
    assert pixel == 2_126_036_480 + 640 * 9 * (192 - 4) + 87_692_800  # its stem sees 192 channels; ConvNeXt-V2 base
    assert [recipe.images for recipe in RECIPES] == [4096, 8192, 8192, 8192, 8192]


def test_work_adds_up_and_grows_with_the_sizes():
    counted = work(RECIPE)
    assert 2.9 * counted.generate < counted.generate_both_ways < 3 * counted.generate
    assert counted.encode_both_ways == 2 * counted.encode
    generated = counted.generate_both_ways + counted.encode_both_ways
    assert counted.step(RECIPE) == 8 * (8 * generated + 12 * counted.encode + counted.loss)
    twice = work(replace(RECIPE, P=16, N=8, G=16))
    assert (twice.generate, twice.values) == (counted.generate, counted.values)
    assert twice.loss == pytest.approx(4 * counted.loss, rel=0.02)  # pairs


def test_live_bytes_are_what_is_alive_at_the_worst_moment():
    x, known = torch.empty(1000, device="meta"), torch.empty(5, 5, device="meta")
    with LiveBytes((known,)) as memory_:
        y = x + 1
        assert memory_.live == 4000
        y = y[:500] * 2  # a view takes nothing; the product is half as large, the sum is freed
        assert (memory_.live, memory_.peak) == (2000, 6000)
        known.mul_(2)
        assert memory_.live == 2000
        del y
    assert memory_.live == 0


def test_live_bytes_of_a_network_are_its_saved_activations():
    net = nn.Sequential(nn.Linear(64, 256), nn.Sigmoid(), nn.Linear(256, 1)).to("meta")
    x = torch.empty(1024, 64, device="meta")
    with LiveBytes((x, *net.parameters())) as memory_:
        y = net(x)
        saved = memory_.live
    assert saved == 4 * 1024 * (256 + 1)  # the sigmoid's output is kept for both neighbours, its input is not
    assert y.shape == (1024, 1)


def test_the_state_is_that_of_the_optimiser_itself():
    numbers = parameters(skeleton(RECIPE))
    kept = state(replace(RECIPE, averages=3), bf16_encoder=True)
    assert (kept.weights, kept.gradients, kept.optimizer, kept.averages) == tuple(4 * numbers * n for n in (1, 1, 2, 3))
    assert state(RECIPE, bf16_encoder=False).encoder == 2 * kept.encoder == 4 * parameters(build_encoder(RECIPE))


def test_recomputing_and_fewer_labels_take_less_memory():
    least, most = part_peak(RECIPE, Options(), 2), part_peak(RECIPE, KEEP_ALL, 2)
    assert least < part_peak(RECIPE, replace(KEEP_ALL, checkpoint_generator=True), 2) < most
    assert part_peak(RECIPE, Options(), 4) == pytest.approx(2 * least, rel=0.03)
    features = 2 * (RECIPE.G + RECIPE.P + RECIPE.N) * work(RECIPE).values * 4
    assert least > features


def test_gradients_travel_whole_or_in_padded_parts():
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.Linear(4, 6, bias=False), nn.Linear(6, 5)])
    net.root = nn.Parameter(torch.zeros(7))
    size = 4 * 6 + 5 * 6 + 5 + 7
    assert totals(gradient_exchange(net, "ddp", 4)) == {"all-reduce": 4 * size}
    padded, root = (8 * 4) + (8 * 6 + 8), 8  # first dimensions 6, 5, 5 and 7, in four equal parts
    assert totals(gradient_exchange(net, "fsdp", 4, gathered=2, passes=4)) == {
        "all-gather": 2 * (4 * padded + 3 * root),
        "reduce-scatter": 4 * (padded + root),
    }
    hybrid = gradient_exchange(net, "hsdp", 8, shard=4)
    assert hybrid[-1] == Exchange("gradients of a shard", "all-reduce", 3, 4 * (padded + root), 2, spread=4)
    assert totals(hybrid)["all-reduce"] == padded + root


def test_statistics_do_not_depend_on_the_number_of_ranks():
    assert totals(loss_exchange(86, 3, 2)) == totals(loss_exchange(86, 3, 512)) == {"all-reduce": 4 * 86 * 6}


def test_a_ring_moves_its_payload():
    wire = replace(MACHINE, bus_in_node=1e9, bus_across=1e8, adapter=1e7, latency_in_node=0.0, latency_across=1.0)
    reduce = Exchange("x", "all-reduce", 3, 8 * 10**9, 8)
    assert seconds(reduce, 8, wire) == pytest.approx(2 * 7 / 8 * 8)
    assert seconds(reduce._replace(operation="all-gather"), 8, wire) == pytest.approx(7 / 8 * 8)
    assert seconds(reduce._replace(ranks=16), 16, wire) == pytest.approx(2 * 15 / 16 * 80 + 3)
    assert seconds(reduce._replace(ranks=2, spread=8), 16, wire) == pytest.approx(100 + 3)  # each its own eighth
    assert seconds(reduce._replace(ranks=1), 1, wire) == 0


def test_labels_are_dealt_out_and_then_shared():
    assert [place(RECIPE, gpus) for gpus in (1, 4, 8, 16, 64)] == [(8, 1), (2, 1), (1, 1), (1, 2), (1, 8)]
    with pytest.raises(ValueError, match="gpus must share 8 x 8 samples out evenly, got 128"):
        place(RECIPE, 128)


def plan(labels: int, mode: str = "ddp", kept: Options = LEAST, stored: bool = False) -> Plan:
    return Plan(mode, labels, kept, stored)


def step(gpus: int, chosen: Plan, machine: Machine = MACHINE) -> Estimate:
    return estimate(RECIPE, chosen, gpus, machine)


def test_products_alone_take_the_time_of_their_flops():
    fast = replace(MACHINE, memory_bandwidth=1e30, generator_flops=1e12, encoder_flops=1e12, loss_flops=1e12)
    whole = step(1, plan(8, kept=KEEP_ALL), fast)
    assert whole.compute == pytest.approx(work(RECIPE).step(RECIPE) / 1e12)
    assert whole.exposed == 0
    again = step(1, plan(8), fast)
    counted = work(RECIPE)
    assert again.compute - whole.compute == pytest.approx(64 * (counted.generate + counted.encode) / 1e12)
    parts = step(1, plan(1, kept=KEEP_ALL, stored=True), fast)
    extra = 2 * (64 * (counted.generate + counted.encode) + 8 * counted.loss) / 1e12
    assert parts.compute - whole.compute == pytest.approx(extra)
    assert step(8, plan(1, kept=KEEP_ALL), fast).compute == pytest.approx(whole.compute / 8)


def test_memory_falls_with_parts_and_shards_and_rises_with_what_is_stored():
    def needed(chosen: Plan, gpus: int = 1) -> float:
        return memory(RECIPE, chosen, gpus, MACHINE)

    assert needed(plan(1)) < needed(plan(4)) < needed(plan(8))
    assert needed(plan(1, stored=True)) > needed(plan(1))
    assert needed(plan(1, mode="fsdp"), 8) < needed(plan(1), 8)
    kept = state(RECIPE, bf16_encoder=True)
    saved = needed(plan(1), 8) - needed(plan(1, mode="fsdp"), 8)
    assert saved == pytest.approx((kept.weights + kept.gradients + kept.optimizer + kept.averages) * 7 / 8)


def test_the_best_plan_fits_and_none_that_fits_is_much_faster():
    tight = replace(MACHINE, reserved=0.0, memory=memory(RECIPE, plan(2), 1, replace(MACHINE, reserved=0.0)))
    chosen = best(RECIPE, 1, tight, (Options(), KEEP_ALL))
    assert chosen.memory <= tight.memory
    every = [
        plan(size, kept=kept, stored=s) for size in (1, 2, 4, 8) for kept in (LEAST, KEEP_ALL) for s in (False, True)
    ]
    fitting = [each for each in every if memory(RECIPE, each, 1, tight) <= tight.memory]
    assert set(fitting_plans(RECIPE, 1, tight, (LEAST, KEEP_ALL))) == set(fitting)
    assert 0 < len(fitting) < len(every)
    assert chosen.step <= 1.01 * min(step(1, each, tight).step for each in fitting)
    assert best(RECIPE, 1, replace(tight, memory=1e4), (Options(),)) is None


@pytest.mark.slow  # processes that import torch, one after the other on a busy machine
def test_quick_run_counts_what_the_formulas_say(tmp_path, capsys):
    scaling.main(["--quick", "--root", str(tmp_path)])
    figures = json.loads((tmp_path / "scaling.json").read_text())
    ranks = figures["measured"]["2"]
    assert all(rank["weak ddp"]["payload"] == ranks[0]["weak ddp"]["payload"] for rank in ranks)
    assert ranks[0]["weak fsdp"]["payload"].keys() == {"all-reduce", "all-gather", "reduce-scatter"}
    assert [each["gpus"] for each in figures["estimated"]["steps"]] == [2, 8, 32]
    assert figures["estimated"]["assumptions"]["gpus_per_node"] == 8
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "estimated, nobody ran it" in printed


def test_a_count_that_differs_from_the_formula_stops_the_benchmark():
    exchange = Exchange("gradients", "all-reduce", 1, 400, 2)._asdict()
    figures = {"payload": {"all-reduce": 400}, "calls": {"all-reduce": 1}, "expected": [exchange], "hook": 400}
    scaling.check_counted({2: [{"weak ddp": figures}]})
    for wrong in ({"payload": {"all-reduce": 404}}, {"hook": 396}):
        with pytest.raises(SystemExit, match="weak ddp on 2: counted"):
            scaling.check_counted({2: [{"weak ddp": figures | wrong}]})


def test_recipes_are_those_of_the_released_configurations():
    sizes = {recipe.name: recipe.per_label for recipe in RECIPES}
    assert sizes == {
        "latent ablation": (64, 64, 16),
        "latent B/2": (64, 64, 32),
        "latent L/2": (64, 64, 32),
        "pixel B/16": (64, 128, 32),
        "pixel L/16": (64, 128, 32),
    }
    assert isinstance(RECIPES[0], Recipe)
