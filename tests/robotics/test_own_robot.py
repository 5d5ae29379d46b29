"""A robot without a simulator: a task file of one's own, demonstrations of one's own, a policy that acts."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from domains.robotics.environments import make_environment
from domains.robotics.policy import DriftingPolicy
from domains.robotics.task import TaskConfig

CHECKOUT = Path(__file__).parents[2]
TASK = """
name: stack_cups
simulator: none
observations: {hand: 7, cup: 7}
action_dim: 7
absolute_actions: true
max_steps: 100
control_hz: 10
present: {hand: [0, 1, 2]}
poses:
  hand: {position: hand, quaternion: hand, quaternion_at: 3}
  cup: {position: cup, quaternion: cup, quaternion_at: 3}
"""


def recorded(path, episodes=3, steps=24):
    """A file with nothing but what a policy learns from: data/demo_<k>/obs/* and actions."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(episodes):
            demo = file.create_group(f"data/demo_{index}")
            for key in ("hand", "cup"):
                demo[f"obs/{key}"] = draw.normal(size=(steps, 7)).astype(np.float32)
            demo["actions"] = draw.uniform(-1, 1, (steps, 7))
    return path


def command(tmp_path, *words):
    (tmp_path / "mine" / "task").mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / "task" / "stack_cups.yaml").write_text(TASK)
    line = [sys.executable, "-m", "domains.robotics.train", f"--config-dir={tmp_path / 'mine'}", "task=stack_cups"]
    line += ["experiment=robot_cpu", f"run.root={tmp_path}", f"demos.cache={tmp_path}", "run.device=cpu", *words]
    return subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)


def test_own_demonstrations_train_a_policy_that_acts(tmp_path):
    demos = recorded(tmp_path / "cups.hdf5")
    words = ["demos.source=human", f"demos.path={demos}", "demos.validation_episodes=1", "eval.episodes=0"]
    words += ["run.steps=3", "policy.mlp.hidden=16", "policy.relative=true", "policy.geometry=true"]
    ended = command(tmp_path, *words)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "evaluate" not in ended.stdout
    policy = DriftingPolicy.from_pretrained(tmp_path / "stack_cups" / "policy")
    assert policy.actions.dim == 10  # poses: six numbers of a rotation in place of three
    seen = {key: torch.randn(1, 2, 7) for key in ("hand", "cup")}
    actions = policy.act(seen)
    assert actions.shape == (1, 8, 7)
    assert bool(torch.isfinite(actions).all())


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "task stack_cups has no simulator (task.simulator=none): the robot plays its policies itself"),
        (("eval.episodes=0",), "there is no scripted expert for task=stack_cups"),
        (("eval.episodes=0", "demos.source=human"), "obs/hand [T, 7], obs/cup [T, 7] and actions [T, 7]"),
    ],
)
def test_what_is_missing_is_said_before_training(tmp_path, words, message):
    ended = command(tmp_path, *words)
    assert ended.returncode == 1
    assert message in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_simulated_task_names_its_environment():
    with pytest.raises(ValueError, match=r"task\.environment must be robosuite's name of the task, got ''"):
        TaskConfig(name="x", simulator="robosuite", observations={"a": 1}, action_dim=7, max_steps=5)
    robot = TaskConfig(name="x", simulator="none", observations={"a": 1}, action_dim=7, max_steps=5)
    with pytest.raises(Exception, match="has no simulator"):
        make_environment(robot)
