"""`python -m domains.robotics.evaluate`: what it plays, writes and refuses."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image
from small_policies import small_config
from task_files import task_of

pytest.importorskip("gym_pusht")
pytest.importorskip("imageio_ffmpeg")

import imageio_ffmpeg

from domains.robotics import evaluate as evaluate_module
from domains.robotics.config import CONFIGS, DiffusionConfig, DriftConfig, RoboticsConfig
from domains.robotics.environments.vectorized import VectorEnvironment
from domains.robotics.evaluate import EvaluateConfig, command_of, evaluate, folder_of
from domains.robotics.played import Played
from domains.robotics.policy_kinds import build_policy
from domains.robotics.rollout import EpisodeResult, roll_out
from domains.robotics.trained_policies import TrainedPolicies
from drifting.training.checkpoint import Checkpoint
from drifting.training.checkpoint_file import checkpoint_paths
from drifting.training.config import CheckpointConfig, EmaConfig, RunConfig, typed
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError, ConfigError, RunDirError
from drifting.training.run_dir import open_run

CHECKOUT = Path(__file__).parents[2]
STEPS = (10, 20, 30)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_of(root, *, steps=STEPS, **settings):
    """A run directory with checkpoints of policies that differ, and those policies."""
    policy_config = small_config(**settings)
    config = RoboticsConfig(
        run=RunConfig(name="small", steps=30, root=str(root), device="cpu"),
        task=task_of("push_t", max_steps=12),
        policy=policy_config,
        drift=DriftConfig(num_generated=2),
        ema=EmaConfig(decays=[0.0]),
        checkpoint=CheckpointConfig(keep=10),
    )
    run_dir = open_run(config.run, config)
    policies = {}
    for step in steps:
        torch.manual_seed(step)
        policy = build_policy(config)
        policy.fit_normalizers(
            {"keypoint": 512 * torch.rand(50, 18), "agent_pos": 512 * torch.rand(50, 2)}, 512 * torch.rand(50, 2)
        )
        ema = Ema(policy, config.ema.decays)
        Checkpoint(run_dir, keep=10, policy=torch.nn.Linear(1, 1), ema=ema).save(step)
        policies[step] = policy.eval()
    return run_dir, policies


def scores(policy, seeds):
    with VectorEnvironment(task_of("push_t", max_steps=12), seats=2, workers=0) as environments:
        return [result.max_reward for result in roll_out(policy, environments, seeds)]


def test_a_run_is_scored_by_its_last_checkpoints(tmp_path, capsys):
    run_dir, policies = run_of(tmp_path)
    log = evaluate(EvaluateConfig(run=str(run_dir), episodes=3, checkpoints=2, seats=2, videos=2, video_size=96))
    out = run_dir / "eval-drifting-episodes-3-checkpoints-2"
    assert json.loads((out / "eval_log.json").read_text()) == json.loads(json.dumps(log))
    assert [row["step"] for row in log["checkpoints"]] == [20, 30]
    seeds = range(100_000, 100_003)
    expected = {step: scores(policies[step], seeds) for step in (20, 30)}
    assert [row["mean_score"] for row in log["checkpoints"]] == pytest.approx([sum(expected[k]) / 3 for k in (20, 30)])
    assert log["test/mean_score"] == pytest.approx(sum(expected[20] + expected[30]) / 6)
    assert [log[f"test/sim_max_reward_{seed}"] for seed in seeds] == pytest.approx(expected[30])
    assert log["task"] == "push_t"
    assert log["policy"] == "drifting"
    assert log["demonstrations"] == "scripted"
    assert 0 < log["latency"]["p50_ms"] <= log["latency"]["p99_ms"]
    environment = json.loads((run_dir / "environment.json").read_text())[-1]
    assert (log["environment"], log["latency"]["cpu"]) == (environment, environment["cpu"])
    for seed in (100_000, 100_001):
        reader = imageio_ffmpeg.read_frames(str(out / log[f"test/sim_video_{seed}"]))
        assert next(reader)["size"] == (96, 96)
        assert sum(1 for _ in reader) == 13  # the start and twelve steps at 10 Hz
    assert Image.open(out / log["frame_sheet"]).size[0] == 8 * 96
    printed = capsys.readouterr().out
    assert "mean over 2 checkpoints" in printed
    assert str(out / "eval_log.json") in printed
    assert sorted(path.name for path in out.iterdir()) == ["eval_log.json", "frames.png", "media"]


def test_fewer_checkpoints_than_asked_for_are_said(tmp_path, capsys):
    run_dir, _ = run_of(tmp_path, steps=(10,))
    log = evaluate(EvaluateConfig(run=str(run_dir), episodes=1, videos=0))
    assert len(log["checkpoints"]) == 1
    assert "the run has 1 checkpoint, 10 were asked for" in capsys.readouterr().out
    assert not list(run_dir.glob("eval-*/media"))


def test_a_saved_policy_is_played_too(tmp_path):
    _, policies = run_of(tmp_path / "runs", steps=(10,))
    policies[10].save_pretrained(tmp_path / "saved", demonstrations="human")
    log = evaluate(EvaluateConfig(run=str(tmp_path / "saved"), episodes=2, videos=0, out=str(tmp_path / "here")))
    assert (tmp_path / "here" / "eval_log.json").exists()
    seeds = range(100_000, 100_002)
    assert [log[f"test/sim_max_reward_{seed}"] for seed in seeds] == pytest.approx(scores(policies[10], seeds))
    assert log["demonstrations"] == "human"
    few = policies[10].config.action_steps - 1
    assert TrainedPolicies.find(tmp_path / "saved", last=1).executing(few).label == f"drifting {few} actions"
    policies[10].save_pretrained(tmp_path / "saved")
    assert TrainedPolicies.find(tmp_path / "saved", last=1).demonstrations == "unknown"


def test_a_baseline_may_be_sampled_otherwise(tmp_path):
    pytest.importorskip("diffusers")
    diffusion = DiffusionConfig(train_steps=8, inference_steps=8)
    run_dir, _ = run_of(tmp_path, steps=(10,), kind="diffusion", diffusion=diffusion)
    found = TrainedPolicies.find(run_dir, last=1)
    assert found.label == "diffusion ddpm 8"
    other = found.sampled_by("ddim", 4)
    assert other.label == "diffusion ddim 4"
    ((step, policy),) = other.load(torch.device("cpu"))
    assert step == 10
    assert policy.config.diffusion.inference_steps == 4
    calls = []
    policy.net.register_forward_hook(lambda *_: calls.append(1))
    policy.act({"keypoint": torch.zeros(1, 2, 18), "agent_pos": torch.zeros(1, 2, 2)})
    assert len(calls) == 4
    with pytest.raises(ConfigError, match="inference_steps must be in"):
        found.sampled_by(None, 9)
    log = evaluate(EvaluateConfig(run=str(run_dir), episodes=1, videos=0, sampler="ddim", inference_steps=2))
    assert log["policy"] == "diffusion ddim 2"
    assert (run_dir / "eval-diffusion-ddim-2-episodes-1" / "eval_log.json").exists()


def test_fewer_actions_may_be_executed_before_the_policy_is_asked_again(tmp_path):
    run_dir, _ = run_of(tmp_path, steps=(10,))
    found = TrainedPolicies.find(run_dir, last=1)
    often = found.executing(2)
    assert (found.label, often.label, found.executing(None).label) == ("drifting", "drifting 2 actions", "drifting")
    ((_, policy),) = often.load(torch.device("cpu"))
    ((_, whole),) = found.load(torch.device("cpu"))
    seen = {"keypoint": torch.zeros(1, 2, 18), "agent_pos": torch.zeros(1, 2, 2)}
    few, all_of_them = (each.act(seen, torch.Generator().manual_seed(0)) for each in (policy, whole))
    assert few.shape[1] == 2
    assert torch.equal(few, all_of_them[:, :2])
    with pytest.raises(ConfigError, match="action_steps must be"):
        found.executing(99)


def test_the_averaged_weights_are_played(tmp_path):
    run_dir, policies = run_of(tmp_path, steps=(10, 20))
    loaded = dict(TrainedPolicies.find(run_dir, last=5).load(torch.device("cpu")))
    assert list(loaded) == [10, 20]
    for step, policy in loaded.items():
        assert not policy.training
        for name, value in policies[step].state_dict().items():
            assert torch.equal(policy.state_dict()[name], value), name


def test_what_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="not a run directory"):
        evaluate(EvaluateConfig(run=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    run_dir, _ = run_of(tmp_path / "none", steps=())
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        evaluate(EvaluateConfig(run=str(run_dir)))
    run_dir, _ = run_of(tmp_path, steps=(10,))
    with pytest.raises(ConfigError, match="belong to diffusion baselines"):
        evaluate(EvaluateConfig(run=str(run_dir), sampler="ddim"))
    with pytest.raises(ConfigError, match="device must be auto, cpu"):
        evaluate(EvaluateConfig(run=str(run_dir), device="abacus"))
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        EvaluateConfig(run="x", episodes=0)
    with pytest.raises(ValueError, match="video_size must be even"):
        EvaluateConfig(run="x", video_size=97)


def no_rollout(*_, **__):
    raise AssertionError("nothing should be played")


@pytest.mark.parametrize(
    ("settings", "broken", "message"),
    [
        ({"video_size": 64}, None, "pictures of push_t must be at least 96 pixels wide, got 64"),
        ({}, "imageio_ffmpeg", "needs the package imageio_ffmpeg, which is not installed"),
    ],
)
def test_what_videos_need_is_missed_before_anything_is_played(tmp_path, monkeypatch, settings, broken, message):
    run_dir, _ = run_of(tmp_path)
    monkeypatch.setattr(evaluate_module, "roll_out", no_rollout)
    if broken:
        monkeypatch.setitem(sys.modules, broken, None)
    with pytest.raises(ConfigError, match=message):
        evaluate(EvaluateConfig(run=str(run_dir), episodes=1, videos=1, **({"video_size": 96} | settings)))


def test_an_interrupted_evaluation_continues(tmp_path, monkeypatch, capsys):
    run_dir, _ = run_of(tmp_path)
    config = EvaluateConfig(run=str(run_dir), episodes=2, seats=2, videos=0)
    expected = evaluate(replace(config, out=str(tmp_path / "whole")))
    played = []

    def interrupted(policy, *arguments, **options):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(policy)
        return roll_out(policy, *arguments, **options)

    monkeypatch.setattr(evaluate_module, "roll_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    capsys.readouterr()
    played.pop()
    log = evaluate(config)
    assert len(played) == 2  # the one that was not played to the end, and none that was
    assert capsys.readouterr().out.count("(played before)") == 2
    changing = {"latency", "seconds", "command"}
    for key in expected.keys() - changing:
        assert log[key] == expected[key], key
    assert [path.name for path in (run_dir / "eval-drifting-episodes-2").iterdir()] == ["eval_log.json"]


def test_what_was_played_otherwise_is_played_again(tmp_path):
    _, policies = run_of(tmp_path)
    played = Played(tmp_path / "played.json", {"seats": 2, "crop": (1, 2)})
    episodes = [EpisodeResult(seed=7, max_reward=0.25, success=True, stages=1, steps=3, frames=["a picture"])]
    assert played.add(policies[10], episodes, 1.5).episodes == episodes
    (found,) = Played(tmp_path / "played.json", {"seats": 2, "crop": (1, 2)}).find(policies[10]).episodes
    assert found == replace(episodes[0], frames=[])
    assert played.find(policies[20]) is None
    assert Played(tmp_path / "played.json", {"seats": 3, "crop": (1, 2)}).find(policies[10]) is None


def test_checkpoints_may_go_while_they_are_played(tmp_path):
    run_dir, policies = run_of(tmp_path)
    loaded = TrainedPolicies.find(run_dir, last=3).load(torch.device("cpu"))
    for path in checkpoint_paths(run_dir):
        path.unlink()
    for step, policy in loaded:
        weights = policy.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in policies[step].state_dict().items())


def test_evaluations_of_other_settings_have_other_folders():
    whole = EvaluateConfig(run="runs/lift", workers=2, videos=0)
    assert folder_of(whole, "drifting") == Path("runs/lift/eval-drifting")
    assert folder_of(replace(whole, out="here"), "drifting") == Path("here")
    others = [
        {"episodes": 2},
        {"checkpoints": 1},
        {"first_seed": 7},
        {"noise_seed": 1},
        {"episodes": 2, "noise_seed": 1},
    ]
    folders = [folder_of(replace(whole, **other), "drifting 2 actions").name for other in others]
    assert folders[2] == "eval-drifting-2-actions-first-seed-7"
    assert len(set(folders)) == len(others)


def test_the_logged_command_is_that_of_the_evaluation():
    """Whatever process called it, a training included."""
    config = EvaluateConfig(run="runs/it's a=b, c", episodes=3, timeout=12.5, sampler="ddim", out="some/where")
    _, _, module, *overrides = shlex.split(command_of(config))
    assert module == "domains.robotics.evaluate"
    ConfigStore.instance().store(name="robotics_evaluate_schema", node=EvaluateConfig)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        given = compose(config_name="robotics_evaluate", overrides=overrides)
    assert typed(given, EvaluateConfig) == config


@pytest.mark.slow
def test_the_command(tmp_path):
    run_dir, _ = run_of(tmp_path, steps=(10,))

    def call(*overrides):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
        words = [sys.executable, "-m", "domains.robotics.evaluate", *overrides]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    done = call(f"run={run_dir}", "episodes=2", "videos=1", "workers=2", "checkpoints=1")
    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout
    out = run_dir / "eval-drifting-episodes-2-checkpoints-1"
    assert (out / "media" / "seed_100000.mp4").exists()
    given = json.loads((out / "eval_log.json").read_text())["command"]
    assert given == f"python -m domains.robotics.evaluate run={run_dir} episodes=2 checkpoints=1 workers=2 videos=1"
    wrong = call("run=nowhere")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: nowhere is not a run directory")
    assert "Traceback" not in wrong.stderr
