"""The four commands as a user runs them, on a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from domains.imagenet import evaluate, judge, pretrain_mae, sample, train
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.evaluate import EvaluateConfig
from domains.imagenet.pretrain_mae import MaeTrainingConfig
from domains.imagenet.sample import SampleConfig
from drifting.training.checkpoint_file import read_checkpoint
from drifting.training.config import typed
from drifting.training.errors import CheckpointError, NonFiniteError, RunDirError, TrainingError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 3)


def run_command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"domains.imagenet.{module}", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def small_config(root: Path, **run) -> ImagenetConfig:
    settings = {
        "run": {"name": "small", "steps": 4, "root": str(root)} | run,
        "generator": {"kind": "mlp", "mlp": {"hidden": 32}},
        "encoder": {"kind": "pixels"},
        "drift": {"classes_per_step": 10, "num_generated": 8, "num_positive": 8, "floor": 0.0},
        "queue": {"per_class": 20, "unconditional": 50},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        "eval": {"alphas": [1.0, 2.0], "samples_per_class": 120, "judges": 1},
    }
    return typed(settings, ImagenetConfig)


def stop_at_two(monkeypatch) -> None:
    save = train.Checkpoint.save

    def save_then_stop(checkpoint, step):
        save(checkpoint, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Checkpoint, "save", save_then_stop)


def same(one, other) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_training_writes_what_it_promises_and_reports(tmp_path, capsys):
    train.main.__wrapped__(small_config(tmp_path))
    run_dir = tmp_path / "small"
    for name in ("samples_alpha_1.png", "samples_alpha_2.png", "real_and_generated.png", "curves.png"):
        assert Image.open(run_dir / name).size[0] > 100
    rows = json.loads((run_dir / "metrics.json").read_text())["rows"]
    assert list(rows) == ["training images", "alpha 1", "alpha 2"]
    assert rows["training images"]["FD(judge) / real"] == 1
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 4
    printed = capsys.readouterr().out
    assert "FD(judge) / real" in printed
    assert str(run_dir) in printed

    # The other two commands on the same run.
    sample.main.__wrapped__(SampleConfig(run=str(run_dir), alpha=1.5, classes=[3, 7], per_class=2))
    names = sorted(path.name for path in (run_dir / "samples" / "alpha1.5_seed0").iterdir())
    assert names == ["00000_class3.png", "00001_class3.png", "00002_class7.png", "00003_class7.png", "sheet.png"]
    (run_dir / "metrics.json").unlink()
    evaluate.main.__wrapped__(EvaluateConfig(run=str(run_dir), eval=small_config(tmp_path).eval))
    again = json.loads((run_dir / "metrics.json").read_text())["rows"]
    assert again == rows


def test_features_need_a_finished_auto_encoder_and_train_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    config = small_config(tmp_path)
    config.encoder.kind, config.encoder.run = "mae", str(tmp_path / "mae")
    with pytest.raises(TrainingError, match=r"mae does not exist\n *python -m domains.imagenet.pretrain_mae"):
        train.main.__wrapped__(config)
    assert not (tmp_path / "small").exists()

    settings = {
        "run": {"name": "mae", "steps": 6, "root": str(tmp_path)},
        "mae": {"channels": 1, "base_channels": 8, "blocks": [1, 1], "max_groups": 2, "num_classes": 10},
        "optim": {"lr": 1e-3},
        "checkpoint": {"every": 2},
        "batch": 32,
        "classification_steps": 3,
    }
    mae_config = typed(settings, MaeTrainingConfig)
    assert [mae_config.weight_at(step) for step in range(6)] == pytest.approx([0, 0, 0, 0, 0.1, 0.1])
    pretrain_mae.main.__wrapped__(mae_config)
    train.main.__wrapped__(config)
    assert (tmp_path / "small" / "curves.png").exists()

    newest = tmp_path / "mae" / "checkpoints" / "step_00000006.pt"
    newest.unlink()
    with pytest.raises(TrainingError, match="stopped at step 4 of 6"):
        train.main.__wrapped__(config)


def test_commands_refuse_what_is_no_run(tmp_path):
    with pytest.raises(RunDirError, match="is not a run directory"):
        sample.main.__wrapped__(SampleConfig(run=str(tmp_path)))
    with pytest.raises(ValueError, match=r"alpha must be a guidance scale >= 1"):
        SampleConfig(run="x", alpha=0.5)


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    train.main.__wrapped__(small_config(tmp_path))
    newest = tmp_path / "small" / "checkpoints" / "step_00000004.pt"
    whole = read_checkpoint(newest).entries
    newest.write_bytes(newest.read_bytes()[:1000])
    train.main.__wrapped__(small_config(tmp_path))
    said = capsys.readouterr().err
    assert "step_00000004.pt is truncated" in said
    assert "continues from step_00000002.pt" in said
    assert same(read_checkpoint(newest).entries, whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"drift": {"num_generated": 1}}, r"drift.num_generated must be at least 2 .*, got 1"),
        ({"drift": {"temperatures": [0.1, -1]}}, r"temperatures must be finite and > 0"),
        ({"guidance": {"low": 0.5}}, r"1 <= low <= high"),
        (
            {"encoder": {"kind": "pixels"}, "queue": {"per_class": 3}},
            r"queue.per_class must be at least drift.num_positive = 64, got 3",
        ),
        ({"encoder": {"kind": "mae"}}, r"encoder.run must be the run directory"),
        ({"drift": {"floors": 0.1}}, r"floors"),
    ],
)
def test_configs_refuse_nonsense(overrides, message):
    with pytest.raises(ValueError, match=message):
        typed({"run": {"name": "x", "steps": 1}} | overrides, ImagenetConfig)


def test_the_command_line_runs_an_experiment_and_refuses_a_typo(tmp_path, monkeypatch):
    def command_line(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        train.main()

    monkeypatch.chdir(tmp_path)
    small = [
        "generator.mlp.hidden=32",
        "eval.samples_per_class=120",
        "drift.num_generated=8",
        "eval.judges=1",
        "eval.alphas=[1.0]",
        "run.steps=2",
    ]
    command_line("run.name=mine", *small)
    assert (tmp_path / "runs" / "mine" / "metrics.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # no hydra litter
    with pytest.raises(SystemExit, match=r"run\.seed: 0 -> 5"):
        command_line("run.name=mine", *small, "run.seed=5")
    typo = run_command("train", "optim.learning_rate=1", cwd=tmp_path)
    assert typo.returncode == 1
    assert "learning_rate" in typo.stderr


def test_a_start_that_is_refused_leaves_no_run_behind(tmp_path):
    config = small_config(tmp_path)
    config.drift.num_positive = config.queue.per_class = 200
    with pytest.raises(TrainingError, match=r"fewer than drift\.num_positive=200 images"):
        train.main.__wrapped__(config)
    config = small_config(tmp_path)
    config.generator.mlp.num_classes = 11
    with pytest.raises(TrainingError, match=r"generator\.mlp\.num_classes must be 10 .*\(digits\), got 11"):
        train.main.__wrapped__(config)
    config = small_config(tmp_path)
    config.drift.classes_per_step = 64
    with pytest.raises(TrainingError, match=r"drift\.classes_per_step must be at most 10, .* got 64"):
        train.main.__wrapped__(config)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_settings_may_change_when_a_run_goes_on(tmp_path):
    config = small_config(tmp_path)
    train.main.__wrapped__(config)
    config.eval.alphas = [1.0]
    train.main.__wrapped__(config)
    assert list(json.loads((tmp_path / "small" / "metrics.json").read_text())["rows"]) == ["training images", "alpha 1"]


def test_an_auto_encoder_that_changed_is_noticed(tmp_path, monkeypatch):
    class Encoder(torch.nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight), requires_grad=False)

        def forward(self, samples):
            return {"global": self.weight * samples.flatten(1).unsqueeze(1)}

    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    monkeypatch.setattr(train, "build_encoder", lambda *_: Encoder(1.0))
    train.main.__wrapped__(small_config(tmp_path))
    monkeypatch.setattr(train, "build_encoder", lambda *_: Encoder(2.0))
    with pytest.raises(CheckpointError, match="encoder refuses its state: the frozen network has other weights"):
        train.main.__wrapped__(small_config(tmp_path))


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_twin_problems_pair_up_and_a_stopped_run_continues_exactly(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    seen = []
    terms = train.FeatureDriftLoss.terms

    def record(self, gen, pos, neg, *, neg_weight, self_ref):
        half = len(gen) // 2
        assert torch.equal(self_ref[:half], gen[half:])
        assert torch.equal(self_ref[half:], gen[:half])
        assert torch.equal(neg_weight[:half], neg_weight[half:])
        assert not self_ref.requires_grad
        seen.append(len(gen))
        return terms(self, gen, pos, neg, neg_weight=neg_weight, self_ref=self_ref)

    monkeypatch.setattr(train.FeatureDriftLoss, "terms", record)
    whole, halves = small_config(tmp_path / "whole"), small_config(tmp_path / "halves")
    for config in (whole, halves):
        config.drift.field, config.drift.temperatures = "sinkhorn", [0.01]
        config.generator.kind = kind
        dit = config.generator.dit
        dit.channels, dit.size, dit.hidden, dit.depth, dit.heads, dit.num_classes = 1, 8, 16, 1, 2, 10
    train.main.__wrapped__(whole)
    assert seen == [20] * 4
    halves.run.steps = 4
    stop_at_two(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train.main.__wrapped__(halves)
    monkeypatch.undo()
    monkeypatch.setattr(train, "report", lambda *_, **__: None)
    train.main.__wrapped__(halves)
    folders = [tmp_path / name / "small" / "checkpoints" / "step_00000004.pt" for name in ("whole", "halves")]
    assert same(*(read_checkpoint(path).entries for path in folders))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_bad_image_stops_the_run_at_its_step_and_the_feature_is_named(tmp_path, monkeypatch, parts):
    draw = train.ProblemDraws.draw

    def spoilt(problems, step):
        batch = draw(problems, step)
        batch.positives[-1, 0, 0, 0, 0] = torch.nan if step == 2 else 0.0
        return batch

    monkeypatch.setattr(train.ProblemDraws, "draw", spoilt)
    config = small_config(tmp_path)
    config.parallel.parts, config.log.every = parts, 3  # no terms are computed at that step
    expected = r"^step 2: the loss.*Not finite: feature global \(all temperatures\), from positive features on rank 0"
    with pytest.raises(NonFiniteError, match=expected):
        train.main.__wrapped__(config)
