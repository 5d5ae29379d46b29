"""The drifting loss on a GPU: the numbers of the CPU, whatever the precision settings, and no waiting for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drifting import DriftLoss, FeatureDriftLoss, MeanShift, SampleQueue, Sinkhorn, drift_field, gaussian
from drifting import engine as engine_module
from drifting import problems as problems_module
from drifting.arguments import DriftInputs
from drifting.features import pooled_statistics
from drifting.fields import KernelGradient, Mmd, Sharp, VelocityGuidance
from drifting.fused.fits import fits
from drifting.learned_temperature import LearnedTemperature
from drifting.scales import Extent
from drifting.walks import Normalization

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

GOLDEN = Path(__file__).parents[1] / "golden" / "drift_loss.npz"
CASES = ("basic_noneg", "neg_unweighted", "cfg_weighted", "single_R", "large_scale", "collapsed_gen", "tiny_scale")
FIELDS = {
    "mean_shift": MeanShift(),
    "no_floor": MeanShift(floor=0.0),
    "separate_blocks": MeanShift(separate_blocks=True),
    "bias_correction": MeanShift(bias_correction=True),
    "kernel_gradient": KernelGradient(),
    "sharp": Sharp(gaussian),
    "mmd": Mmd(gaussian),
    "sinkhorn": Sinkhorn(),
    "sinkhorn_tolerance": Sinkhorn(100, tolerance=1e-3),
    "guided": VelocityGuidance(KernelGradient()),
}
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
# Sizes on both sides of what keeps coefficients and what keeps drifts, and few references as in robot learning.
SHAPES = {"wide": (3, 16, 12, 5, 300), "narrow": (40, 16, 12, 5, 8), "few": (32, 8, 1, 0, 56)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def relative(ours: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((ours.detach().cpu().double() - exact.cpu().double()).abs().max() / exact.abs().max()).item()


def samples(shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """float64 on the CPU; positives shifted, extra negatives weighted, a second generated batch."""
    source = torch.Generator().manual_seed(seed)
    b, g, p, n, d = shape

    def draw(k: int) -> Tensor:
        return torch.randn(b, k, d, generator=source, dtype=torch.float64)

    drawn = {"gen": draw(g), "pos": draw(p) + 0.3, "self_ref": draw(g)}
    if n:
        drawn |= {"neg": draw(n), "neg_weight": torch.rand(b, n, generator=source, dtype=torch.float64)}
    return drawn


def given_to(field, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second batch where the field repels by the batch itself."""
    inner = getattr(field, "field", field)
    return drawn if isinstance(inner, Sinkhorn) else {name: x for name, x in drawn.items() if name != "self_ref"}


def loss_and_gradient(loss: DriftLoss, drawn: dict[str, Tensor], device: str, dtype: torch.dtype):
    drawn = {name: x.to(device, dtype, copy=True) for name, x in drawn.items()}
    gen = drawn.pop("gen").requires_grad_()
    value = loss(gen, drawn.pop("pos"), **drawn)
    value.backward()
    return value.detach(), gen.grad


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_authors_code(name):
    with np.load(GOLDEN) as arrays:
        case = {k.split("/", 1)[1]: torch.from_numpy(arrays[k]) for k in arrays.files if k.split("/")[0] == name}
    on_device = {key: value.cuda() for key, value in case.items()}
    gen = on_device["gen"].requires_grad_()
    neg = on_device["neg"] if case["neg"].shape[1] else None
    terms = DriftLoss(temperatures=tuple(case["R_list"].tolist())).terms(
        gen,
        on_device["pos"],
        neg,
        gen_weight=on_device.get("weight_gen"),
        pos_weight=on_device.get("weight_pos"),
        neg_weight=None if neg is None else on_device.get("weight_neg"),
    )
    terms.loss.mean().backward()
    collapsed = name == "collapsed_gen"  # their distances are rounding of dot products there
    assert relative(terms.loss, case["loss"]) <= (2e-3 if collapsed else 2e-6)
    assert relative(gen.grad, case["grad_of_mean_loss"]) <= (2e-3 if collapsed else 2e-5)


@every_shape
@every_field
def test_double_precision_gives_the_numbers_of_the_cpu(field, shape):
    drawn = given_to(field, samples(shape))
    expected = loss_and_gradient(DriftLoss((0.05, 0.3), field), drawn, "cpu", torch.float64)
    found = loss_and_gradient(DriftLoss((0.05, 0.3), field), drawn, "cuda", torch.float64)
    assert relative(found[0], expected[0]) < 1e-11
    assert relative(found[1], expected[1]) < 1e-9


@every_shape
@every_field
@pytest.mark.parametrize("setting", ["plain", "tf32", "autocast"])
def test_single_precision_stays_single_precision(field, shape, setting):
    drawn = given_to(field, samples(shape, seed=1))
    loss = DriftLoss((0.05, 0.3), field)
    rounded = {name: x.float().double() for name, x in drawn.items()}
    exact = loss_and_gradient(loss, rounded, "cpu", torch.float64)
    on_cpu = loss_and_gradient(loss, drawn, "cpu", torch.float32)
    torch.set_float32_matmul_precision("high" if setting == "tf32" else "highest")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=setting == "autocast"):
            found = loss_and_gradient(loss, drawn, "cuda", torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    for ours, theirs, truth in zip(found, on_cpu, exact, strict=True):
        # TF32 or bfloat16 would be a hundred times further off than this.
        assert relative(ours, truth) < max(2e-5, 4 * relative(theirs, truth))


@pytest.mark.parametrize("extent", Extent)
def test_extents_and_learned_temperatures(extent):
    drawn = given_to(MeanShift(), samples(SHAPES["wide"]))
    found = []
    for device in ("cpu", "cuda"):
        temperatures = (0.1, LearnedTemperature(0.3).double().to(device))
        loss = DriftLoss(temperatures, feature_extent=extent, drift_extent=extent)
        found.append(loss_and_gradient(loss, drawn, device, torch.float64))
    assert relative(found[1][1], found[0][1]) < 1e-9


def test_half_precision_samples_get_half_precision_gradients():
    drawn = given_to(MeanShift(), samples(SHAPES["wide"]))
    _, gradient = loss_and_gradient(DriftLoss(), drawn, "cuda", torch.bfloat16)
    rounded = {name: x.bfloat16().double() for name, x in drawn.items()}
    _, exact = loss_and_gradient(DriftLoss(), rounded, "cpu", torch.float64)
    assert gradient.dtype == torch.bfloat16
    assert relative(gradient, exact) < 2**-8


def test_blocks_of_problems_do_not_change_the_numbers(monkeypatch):
    drawn = given_to(MeanShift(), samples((37, 16, 12, 5, 64)))
    whole = loss_and_gradient(DriftLoss(), drawn, "cuda", torch.float64)
    monkeypatch.setattr(problems_module, "ACCELERATOR_BLOCK", 2**17)  # a few problems at a time
    blocks = loss_and_gradient(DriftLoss(), drawn, "cuda", torch.float64)
    assert relative(blocks[0], whole[0]) < 1e-12
    assert relative(blocks[1], whole[1]) < 1e-11


@every_field
def test_the_raw_field_is_that_of_the_cpu(field):
    drawn = given_to(field, samples(SHAPES["narrow"]))
    pos, gen = drawn.pop("pos"), drawn.pop("gen")
    expected = drift_field(gen, pos, temperature=0.7, field=field, **drawn)
    on_device = {name: x.cuda() for name, x in drawn.items()}
    found = drift_field(gen.cuda(), pos.cuda(), temperature=0.7, field=field, **on_device)
    assert relative(found, expected) < 1e-9


class Pooled(nn.Module):
    """Statistics of a map; frozen, and without parameters."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return pooled_statistics(x)


def image_features(device: str, dtype: torch.dtype = torch.float32) -> tuple[FeatureDriftLoss, dict[str, Tensor]]:
    source = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(4, k, 6, 8, 8, generator=source) for name, k in (("gen", 8), ("pos", 8), ("neg", 3))}
    drawn["neg_weight"] = torch.rand(4, 3, generator=source)
    return FeatureDriftLoss(Pooled(), DriftLoss()), {name: x.to(device, dtype) for name, x in drawn.items()}


@pytest.mark.parametrize("refuse_nonfinite", [False, True])
def test_nothing_waits_for_the_device(refuse_waiting, refuse_nonfinite):
    loss, drawn = image_features("cuda")
    loss.loss.refuse_nonfinite = refuse_nonfinite
    gen = drawn.pop("gen").requires_grad_()

    def step() -> None:
        terms = loss.terms(gen, **drawn)
        (loss(gen, **drawn) + sum(term.loss.mean() for term in terms.values())).backward()

    step()  # loads libraries, compiles kernels, sends constants
    refuse_waiting()
    step()


def test_features_give_the_numbers_of_the_cpu():
    found = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float64), ("cuda", torch.float32)):
        loss, drawn = image_features(device, dtype)
        gen = drawn.pop("gen").requires_grad_()
        loss(gen, **drawn).backward()
        found.append(gen.grad)
    assert relative(found[1], found[0]) < 1e-9
    assert relative(found[2], found[0]) < 1e-4


def test_a_nan_on_the_device_is_refused_in_a_later_call():
    drawn = {name: x.cuda().float() for name, x in given_to(MeanShift(), samples(SHAPES["wide"])).items()}
    gen, pos = drawn.pop("gen"), drawn.pop("pos")
    loss = DriftLoss(refuse_nonfinite=True)
    loss(gen, pos, **drawn)
    poisoned = gen.clone()
    poisoned[1, 2, 3] = float("nan")
    loss(poisoned, pos, **drawn)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"finite.* in call 2, 1 calls ago"):
        loss(gen, pos, **drawn)


def test_the_loss_takes_little_memory_beside_its_samples():
    gen, pos, neg = (torch.randn(64, k, 1024, device="cuda") for k in (64, 64, 16))
    gen.requires_grad_()
    loss = DriftLoss()
    loss(gen, pos, neg).backward()
    gen.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss(gen, pos, neg).backward()
    own = gen.numel() * gen.element_size()
    # The gradient, a block of centred references, Gram matrices and coefficients.
    assert torch.cuda.max_memory_allocated() - before < 6 * own


def test_precision_settings_are_as_they_were():
    torch.set_float32_matmul_precision("high")
    try:
        with engine_module.full_precision(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_loss_can_be_replayed_as_a_cuda_graph():
    drawn = {name: x.cuda().float() for name, x in given_to(MeanShift(), samples(SHAPES["few"])).items()}
    loss = DriftLoss()

    def gradient(gen: Tensor, pos: Tensor) -> Tensor:
        gen = gen.detach().requires_grad_()
        return torch.autograd.grad(loss(gen, pos), gen)[0]

    gen, pos = drawn["gen"], drawn["pos"]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        gradient(gen, pos)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(gen, pos)
    fresh = samples(SHAPES["few"], seed=5)
    gen.copy_(fresh["gen"])
    pos.copy_(fresh["pos"])
    graph.replay()
    assert relative(captured, gradient(gen, pos)) < 1e-6


def test_a_queue_on_the_host_feeds_a_step_without_waiting(refuse_waiting):
    queue = SampleQueue(4, 32, (3, 8, 8), pin_memory=True)
    queue.push(torch.randn(128, 3, 8, 8), torch.arange(4).repeat(32))
    labels = torch.arange(4)
    for _ in range(2):  # pins its two buffers
        queue.sample(labels, 8, device="cuda")
    refuse_waiting()
    totals = [queue.sample(labels, 8, device="cuda").sum() for _ in range(2)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(total.isfinite() for total in totals)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_walk_serves_the_default_field_and_equals_the_plain_one(monkeypatch, weighted):
    """Sets of unlike size side by side, some problems at a time, and the same without compiled kernels."""
    sets = [given_to(MeanShift(), samples((b, 16, 12, 5, 64), seed=b)) for b in (7, 3, 12)]
    inputs = [DriftInputs(**{name: x.cuda().float() for name, x in each.items()}) for each in sets]
    if not weighted:
        inputs = [replace(each, neg_weight=None) for each in inputs]
    loss = DriftLoss()
    normalization = Normalization()
    assert all(fits(each.problems(), loss.field, normalization) for each in inputs)
    assert not fits(inputs[0].problems(), KernelGradient(), normalization)
    fused = loss.joint_terms(inputs)
    monkeypatch.setattr(problems_module, "ACCELERATOR_BLOCK", 2**16)
    blocks = loss.joint_terms(inputs)
    monkeypatch.setenv("DRIFTING_NATIVE", "0")
    assert not fits(inputs[0].problems(), loss.field, normalization)
    for one, some, plain in zip(fused, blocks, loss.joint_terms(inputs), strict=True):
        assert relative(one.drift, plain.drift) < 2e-5
        assert relative(some.drift, plain.drift) < 2e-5
        for name in ("positive_mass", "negative_mass", "floor_share"):
            assert relative(getattr(one.diagnostics, name), getattr(plain.diagnostics, name)) < 2e-5


def test_a_schedule_of_temperatures_does_not_wait(refuse_waiting):
    drawn = {name: x.cuda().float() for name, x in given_to(MeanShift(), samples(SHAPES["few"])).items()}
    loss, learned = DriftLoss(), LearnedTemperature(0.3)  # the latter on the host, where it is made
    loss(**drawn)
    loss.temperatures = (0.1, learned)
    value = loss(**drawn)
    refuse_waiting()
    for temperature in (0.31, 0.32):
        loss.temperatures = (temperature, 0.5)
        loss(**drawn)
    torch.cuda.set_sync_debug_mode("default")
    assert value.isfinite()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_samples_on_another_device_than_the_current_one():
    drawn = given_to(MeanShift(), samples(SHAPES["wide"]))
    expected = loss_and_gradient(DriftLoss(), drawn, "cuda:0", torch.float32)
    found = loss_and_gradient(DriftLoss(), drawn, "cuda:1", torch.float32)
    assert relative(found[1], expected[1].cpu()) < 1e-6


def test_tiles_that_no_program_can_hold_are_served_too():
    drawn = given_to(MeanShift(), samples((2, 300, 200, 0, 16)))
    assert not fits(DriftInputs(**drawn).problems(), MeanShift(), Normalization())
    expected = loss_and_gradient(DriftLoss(), drawn, "cpu", torch.float64)
    assert relative(loss_and_gradient(DriftLoss(), drawn, "cuda", torch.float32)[1], expected[1]) < 1e-4
