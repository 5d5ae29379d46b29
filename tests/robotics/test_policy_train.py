"""The training command on a handful of made-up PushT demonstrations: what it writes, learns, continues and refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_policies import push_t_file, small_config

from domains.robotics import train
from domains.robotics.config import (
    BatchConfig,
    DiffusionConfig,
    DriftConfig,
    EvalConfig,
    HeldOutConfig,
    RoboticsConfig,
)
from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.policy_kinds import load_policy
from domains.robotics.pretrained_policy import read_description
from domains.robotics.start_checks import check_start
from domains.robotics.task import TaskConfig
from drifting.training.checkpoint_file import checkpoint_paths
from drifting.training.config import CheckpointConfig, EmaConfig, LogConfig, OptimConfig, ParallelConfig, RunConfig
from drifting.training.errors import ConfigError, NonFiniteError, RunDirError
from drifting.training.metrics_log import read_metrics
from drifting.training.world import World

CHECKOUT = Path(__file__).parents[2]
PUSH_T = TaskConfig(
    name="push_t",
    simulator="push_t",
    environment="gym_pusht/PushT-v0",
    observations={"keypoint": 18, "agent_pos": 2},
    action_dim=2,
    max_steps=10,
)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    path = push_t_file(folder / "push_t.npz")
    return DemosConfig(source="human", path=str(path), validation_episodes=1, cache=str(folder))


def configured(root, demos, name="one", steps=12, **sections):
    given = {
        "policy": small_config(noise_dim=2),
        "drift": DriftConfig(num_generated=4),
        "batch": BatchConfig(5),
        "optim": OptimConfig(lr=3e-3, schedule="cosine", clip_norm=1.0),
        "ema": EmaConfig(decays=[0.9], warmup=True),
        "held_out": HeldOutConfig(every=6, windows=20, samples=4),
        "checkpoint": CheckpointConfig(every=4, keep=10),
        "log": LogConfig(every=3),
        "eval": EvalConfig(episodes=0),
    }
    run = RunConfig(name=name, steps=steps, root=str(root), device="cpu")
    return RoboticsConfig(run=run, task=PUSH_T, demos=demos, **(given | sections))


def trained(config):
    train.main.__wrapped__(config)
    return Path(config.run.root) / config.run.name


def trained_figures(line):
    """A line of the log without what the clock and the machine decide."""
    kept = ("step", "loss", "drift_rms", "spread", "denoising_error", "grad_norm", "lr")
    return {name: value for name, value in line.items() if name in kept or name.startswith("held_out/")}


def weights(run_dir):
    return load_policy(run_dir / "policy").state_dict()


@pytest.mark.parametrize("kind", ["drifting", "diffusion"])
def test_a_spoilt_action_stops_the_run_at_its_step_and_says_whose_it_is(tmp_path, demos, monkeypatch, kind):
    draw = train.StepBatches.draw

    def spoilt(batches, step):
        batch = draw(batches, step)
        batch.actions[-1, 0, 0] = torch.nan if step == 2 else batch.actions[-1, 0, 0]
        return batch

    monkeypatch.setattr(train.StepBatches, "draw", spoilt)
    policy = small_config(noise_dim=2) if kind == "drifting" else small_config(kind="diffusion")
    config = configured(tmp_path, demos, policy=policy, log=LogConfig(every=4))  # no terms are computed at that step
    named = r".*Not finite: feature actions \(all temperatures\), from positive features on rank 0"
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss" + (named if kind == "drifting" else "")):
        trained(config)


def test_a_run_writes_figures_checkpoints_and_a_policy(tmp_path, demos):
    run_dir = trained(configured(tmp_path, demos))
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert {"loss", "drift_rms", "spread", "grad_norm", "lr"} <= lines[0].keys()
    assert ["held_out/es" in line for line in lines] == [False, True, False, True]
    assert [path.name for path in checkpoint_paths(run_dir)] == [f"step_{step:08d}.pt" for step in (4, 8, 12)]
    assert read_description(run_dir / "policy").demonstrations == "human"
    policy = load_policy(run_dir / "policy")
    actions = policy.act({"keypoint": torch.full((1, 2, 18), 250.0), "agent_pos": torch.full((1, 2, 2), 250.0)})
    assert actions.shape == (1, 4, 2)
    assert 0 < actions.mean() < 512  # pixels: the bounds were fitted and saved


def test_it_learns(tmp_path, demos):
    run_dir = trained(configured(tmp_path, demos, steps=150, held_out=HeldOutConfig(every=10, windows=30, samples=8)))
    scores = [line["held_out/es"] for line in read_metrics(run_dir) if "held_out/es" in line]
    assert scores[-1] < 0.5 * scores[0]


@pytest.mark.parametrize(
    "sections",
    [{}, {"drift": DriftConfig(num_generated=4, neighbours=2, rows="timestep")}, {"policy": "diffusion"}],
    ids=["chunk", "timestep, neighbours", "diffusion"],
)
def test_a_stopped_run_continues_bit_for_bit(tmp_path, demos, sections):
    if sections.get("policy") == "diffusion":
        pytest.importorskip("diffusers")
        levels = DiffusionConfig(train_steps=8, inference_steps=4, sampler="ddim", draws=3)
        sections = {"policy": small_config(kind="diffusion", diffusion=levels)}
    whole = trained(configured(tmp_path, demos, **sections))
    config = configured(tmp_path, demos, name="two", **sections)
    part = trained(config)
    for path in checkpoint_paths(part)[1:]:
        path.unlink()
    (part / "policy" / "config.json").unlink(), (part / "policy" / "model.safetensors").unlink()
    trained(config)
    for name, value in weights(whole).items():
        assert torch.equal(weights(part)[name], value), name
    for mine, theirs in zip(read_metrics(part), read_metrics(whole), strict=True):
        assert trained_figures(mine) == trained_figures(theirs)


def test_seeds_and_only_seeds_change_the_result(tmp_path, demos):
    first = weights(trained(configured(tmp_path, demos)))
    config = configured(tmp_path, demos, name="other")
    other = weights(trained(replace(config, run=replace(config.run, seed=1))))
    assert not torch.equal(first["net.enter.weight"], other["net.enter.weight"])


def test_the_averaged_weights_are_saved(tmp_path, demos):
    slow = weights(trained(configured(tmp_path, demos, ema=EmaConfig(decays=[0.999]))))
    fast = weights(trained(configured(tmp_path, demos, name="fast", ema=EmaConfig(decays=[0.0]))))
    start = weights(trained(configured(tmp_path, demos, name="start", optim=OptimConfig(lr=1e-12))))
    moved = [(state["net.enter.weight"] - start["net.enter.weight"]).norm() for state in (slow, fast)]
    assert moved[0] < 0.1 * moved[1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parallel": ParallelConfig(parts=2)}, r"parallel\.parts must be 1"),
        ({"policy": "diffusion", "drift": DriftConfig(neighbours=2)}, r"drift\.neighbours must be 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_is_made(tmp_path, demos, sections, message):
    if sections.get("policy") == "diffusion":
        sections = sections | {"policy": small_config(kind="diffusion")}
    with pytest.raises(ConfigError, match=message):
        trained(configured(tmp_path / "runs", demos, **sections))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": BatchConfig(3)}, r"batch\.size must be at least 4"),
        ({"task": replace(PUSH_T, images={"image": 64})}, r"policy\.image\.crop must be at most 64"),
        ({"demos": DemosConfig(episodes=8)}, r"validation_episodes must leave a demonstration .* of 8 in all, got 8"),
        ({"policy": small_config(kind="diffusion")}, "needs diffusers"),
        ({"eval": EvalConfig(episodes=1)}, r"the package gym_pusht, which is not installed.* eval\.episodes=0 trains"),
    ],
)
def test_what_needs_no_demonstrations_is_refused_before_they_are_made(tmp_path, demos, monkeypatch, change, message):
    for name in ("diffusers", "gym_pusht.envs.pusht"):  # whether imported before or not
        monkeypatch.setitem(sys.modules, name, None)
    config = replace(configured(tmp_path / "runs", demos), **change)
    with pytest.raises(ConfigError, match=message):
        check_start(config, World(torch.device("cpu"), size=4))
    assert not (tmp_path / "runs").exists()


def test_a_taken_name_is_refused_before_demonstrations_are_made(tmp_path, demos, monkeypatch):
    trained(configured(tmp_path, demos, steps=1))
    monkeypatch.setattr(train, "load_windows", lambda *_: pytest.fail("demonstrations are made"))
    with pytest.raises(RunDirError, match=r"batch\.size: 5 -> 6"):
        trained(configured(tmp_path, demos, steps=1, batch=BatchConfig(6)))
    with pytest.raises(ConfigError, match="validation_episodes"):
        trained(configured(tmp_path, DemosConfig(episodes=1), name="other"))


def test_every_demonstration_held_out_is_refused(tmp_path, demos):
    with pytest.raises(ConfigError, match=r"validation_episodes must leave a demonstration .* of 6 in all, got 6"):
        trained(configured(tmp_path, replace(demos, validation_episodes=6)))
    with pytest.raises(DemonstrationError, match="horizon of 64"):
        trained(configured(tmp_path, demos, policy=small_config(horizon=64)))


def command(*overrides, cwd, ranks=1):
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    call = [*start, "domains.robotics.train", "task=push_t", "run.device=cpu", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def quick(demos, name):
    return [
        f"run.name={name}",
        "run.steps=6",
        "demos.source=human",
        f"demos.path={demos.path}",
        f"demos.cache={demos.cache}",
        "demos.validation_episodes=1",
        "policy.mlp.hidden=16",
        "batch.size=5",
        "eval.episodes=0",
        "log.every=1",
    ]


def test_the_command_takes_the_settings_of_its_machine(tmp_path, demos):
    done = command(*quick(demos, "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a drifting policy, mlp of" in done.stdout and "5 human demonstrations" in done.stdout
    assert "experiment=push_t_cpu" in done.stdout
    assert len(read_metrics(tmp_path / "runs" / "run")) == 6


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tmp_path, demos):
    alone = command(*quick(demos, "alone"), cwd=tmp_path)
    shared = command(*quick(demos, "shared"), "parallel=ddp", cwd=tmp_path, ranks=2)
    assert alone.returncode == shared.returncode == 0, alone.stderr + shared.stderr
    one, two = (weights(tmp_path / "runs" / name) for name in ("alone", "shared"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(*(read_metrics(tmp_path / "runs" / name) for name in ("alone", "shared")), strict=True):
        assert trained_figures(mine) == pytest.approx(trained_figures(theirs), rel=1e-3)
