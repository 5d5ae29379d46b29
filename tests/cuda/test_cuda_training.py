"""Networks and training commands on a GPU: the numbers of the CPU, runs that continue, timings that are real."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from domains.imagenet import evaluate, judge, pretrain_mae, sample, train
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.evaluate import EvaluateConfig
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.pretrain_mae import MaeTrainingConfig
from domains.imagenet.sample import SampleConfig
from drifting import DriftLoss, FeatureDriftLoss
from drifting.accumulation import backward_in_parts
from drifting.training.checkpoint_file import checkpoint_paths, read_checkpoint
from drifting.training.config import ParallelConfig, typed
from drifting.training.metrics_log import read_metrics
from drifting.training.parallelize import parallelize
from drifting.training.step_timer import StepTimer
from drifting.training.world import World

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SMALL = GeneratorConfig(size=8, hidden=64, depth=2, heads=2, num_classes=10, context_tokens=2, style_tokens=2)


def relative(ours: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((ours.detach().cpu() - exact.detach().cpu()).abs().max() / exact.abs().max()).item()


def awake_generator() -> DiTGenerator:
    """Random weights where a new one has zeros."""
    torch.manual_seed(0)
    generator = DiTGenerator(SMALL)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return generator


def inputs(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(count, SMALL.channels, SMALL.size, SMALL.size, generator=source)
    style = torch.randint(SMALL.style_codes, (count, SMALL.style_tokens), generator=source)
    return [noise, torch.arange(count) % 10, torch.linspace(1, 3, count), style]


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cuda() for tensor in tensors]


@pytest.fixture(scope="module")
def exact():
    """Samples and gradients of the CPU in float32."""
    generator = awake_generator()
    samples = generator(*inputs(12))
    samples.square().sum().backward()
    return samples, [parameter.grad for parameter in generator.parameters()]


@pytest.mark.parametrize(
    ("settings", "close"),
    [
        ({}, 2e-5),
        ({"compile": True}, 2e-5),
        ({"checkpoint_activations": True}, 2e-5),
        ({"precision": "bfloat16"}, 0.05),
    ],
    ids=["plain", "compile", "recompute", "bfloat16"],
)
def test_the_generator_gives_the_numbers_of_the_cpu(exact, settings, close):
    generator = awake_generator().cuda()
    model = parallelize(generator, World(device=torch.device("cuda", 0)), ParallelConfig(**settings))
    samples = model(*on_gpu(inputs(12)))
    samples.square().sum().backward()
    assert relative(samples, exact[0]) < close
    for parameter, gradient in zip(generator.parameters(), exact[1], strict=True):
        assert relative(parameter.grad, gradient) < 10 * close
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("parts", [1, 3])
def test_a_whole_step_in_features_gives_the_numbers_of_the_cpu(parts):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(MaeConfig(base_channels=16, blocks=(1, 1, 1, 1), max_groups=4))
    source = torch.Generator().manual_seed(3)
    pos, neg = (torch.randn(3, k, 4, 8, 8, generator=source) for k in (4, 2))
    gradients = []
    for device in ("cpu", "cuda"):
        generator = awake_generator().to(device).double()
        loss = FeatureDriftLoss(MaeFeatures(deepcopy(mae).to(device).double()), DriftLoss((0.1, 0.3)))
        given = [x.to(device, torch.float64) if x.is_floating_point() else x.to(device) for x in inputs(12)]

        def part(first: int, last: int, generator=generator, given=given, device=device):
            own = [x.unflatten(0, (3, 4))[first:last].flatten(0, 1) for x in given]
            gen = generator(*own).unflatten(0, (last - first, 4))
            references = {"pos": pos[first:last], "neg": neg[first:last]}
            return {"gen": gen, **{name: x.to(device).double() for name, x in references.items()}}

        if parts == 1:
            loss(**part(0, 3)).backward()
        else:
            backward_in_parts(loss, [lambda i=i, part=part: part(i, i + 1) for i in range(3)])
        gradients.append([parameter.grad for parameter in generator.parameters()])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        assert relative(ours, theirs) < 1e-5  # embeddings of the scale are float32


@pytest.fixture
def quick_judges(monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 3)


def small_config(root: Path, **changed) -> ImagenetConfig:
    dit = {"channels": 1, "size": 8, "patch": 4, "hidden": 32, "depth": 2, "heads": 2, "num_classes": 10}
    settings = {
        "run": {"name": "small", "steps": 6, "root": str(root), "device": "cuda"},
        "generator": {"kind": "dit", "dit": dit | {"context_tokens": 2, "style_tokens": 2}},
        "encoder": {"kind": "pixels"},
        "drift": {"classes_per_step": 10, "num_generated": 8, "num_positive": 8, "floor": 0.0},
        "queue": {"per_class": 20, "unconditional": 50},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        "eval": {"alphas": [1.0], "samples_per_class": 120, "judges": 1},
    }
    return typed(settings | changed, ImagenetConfig)


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    return read_checkpoint(checkpoint_paths(run_dir)[-1]).entries["generator"]


def test_training_sampling_and_evaluation_on_the_device(tmp_path, quick_judges):
    train.main.__wrapped__(small_config(tmp_path))
    run_dir = tmp_path / "small"
    logged = read_metrics(run_dir)
    assert len(logged) == 6
    assert all(line["time/loss"] > 0 and line["peak_memory_gib"] > 0 for line in logged)
    sample.main.__wrapped__(SampleConfig(run=str(run_dir), classes=[3], per_class=2, device="cuda"))
    rows = json.loads((run_dir / "metrics.json").read_text())["rows"]
    (run_dir / "metrics.json").unlink()
    evaluate.main.__wrapped__(EvaluateConfig(run=str(run_dir), device="cuda", eval=small_config(tmp_path).eval))
    again = json.loads((run_dir / "metrics.json").read_text())["rows"]
    for name, value in rows["alpha 1"].items():
        assert again["alpha 1"][name] == pytest.approx(value, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("parallel", [{}, {"precision": "bfloat16", "compile": True}, {"parts": 2}], ids=str)
def test_a_run_continues_where_it_stopped(tmp_path, quick_judges, monkeypatch, parallel):
    train.main.__wrapped__(small_config(tmp_path / "whole", parallel=parallel))
    save = train.Checkpoint.save

    def save_then_stop(checkpoint, step):
        save(checkpoint, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train.Checkpoint, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            train.main.__wrapped__(small_config(tmp_path / "cut", parallel=parallel))
    train.main.__wrapped__(small_config(tmp_path / "cut", parallel=parallel))
    whole, cut = (weights_of(tmp_path / name / "small") for name in ("whole", "cut"))
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-3, atol=1e-5)


def test_the_encoder_is_pretrained_on_the_device(tmp_path):
    mae = {"channels": 1, "base_channels": 8, "blocks": [1, 1], "max_groups": 4, "num_classes": 10}
    settings = {
        "run": {"name": "mae", "steps": 4, "root": str(tmp_path), "device": "cuda"},
        "mae": mae,
        "batch": 32,
        "log": {"every": 1},
        "parallel": {"precision": "bfloat16"},
    }
    pretrain_mae.main.__wrapped__(typed(settings, MaeTrainingConfig))
    errors = [line["reconstruction"] for line in read_metrics(tmp_path / "mae")]
    assert len(errors) == 4
    assert all(math.isfinite(error) for error in errors)


def test_regions_are_timed_by_the_device():
    device = torch.device("cuda", 0)
    timer = StepTimer(device)
    timer.figures()
    with timer.region("asleep"):
        torch.cuda._sleep(2 * 10**8)  # some .1 s, and the host goes on
    timer.step(1)
    torch.cuda.synchronize()
    figures = timer.figures()
    assert 0.02 < figures["time/asleep"] < 1
