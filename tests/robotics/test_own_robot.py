"""A robot without a simulator, by the lines of docs/robotics.md: a task file, demonstrations, a policy that acts."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from domains.robotics.environments import make_environment
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError

CHECKOUT = Path(__file__).parents[2]
DOCS = (CHECKOUT / "docs" / "robotics.md").read_text()
(TASK,) = re.findall(r"```yaml\n(.*?)```", DOCS, flags=re.DOTALL)
(WORDS,) = re.findall(r"```\npython -m domains\.robotics\.train --config-dir=mine (.*?)```", DOCS, flags=re.DOTALL)
(LOOP,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)


class Robot:
    """Sees noise, notes what it is told, stops after some actions."""

    def __init__(self):
        self.told = []

    def observe(self):
        draw = np.random.default_rng(len(self.told))
        return {key: draw.normal(size=7).astype(np.float32) for key in ("hand", "cup")}

    def command(self, action):
        self.told.append(action)

    @property
    def stopped(self):
        return len(self.told) >= 20


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


def train(tmp_path, *words):
    (tmp_path / "mine" / "task").mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / "task" / "stack_cups.yaml").write_text(TASK)
    small = ["run.device=cpu", "run.steps=3", "policy.mlp.hidden=16", f"run.root={tmp_path}/runs"]
    small.append(f"demos.cache={tmp_path}")
    line = [sys.executable, "-m", "domains.robotics.train", f"--config-dir={tmp_path / 'mine'}", *words, *small]
    return subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)


def test_the_page_leads_from_a_task_and_demonstrations_to_a_robot_that_acts(tmp_path, monkeypatch):
    demos = recorded(tmp_path / "cups.hdf5")
    words = WORDS.replace("\\\n", " ").replace("cups.hdf5", str(demos)).split()
    ended = train(tmp_path, *words, "demos.validation_episodes=1")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "evaluate" not in ended.stdout
    monkeypatch.chdir(tmp_path)
    scope = {"robot": Robot()}
    exec(LOOP, scope)
    policy, told = scope["policy"], np.array(scope["robot"].told)
    assert policy.actions.dim == 10  # poses: six numbers of a rotation in place of three
    assert told.shape == (20, 7)  # it stops within a chunk
    assert np.isfinite(told).all()


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "task stack_cups has no simulator (task.simulator=none): the robot plays its policies itself"),
        (("eval.episodes=0",), "there is no scripted expert for task=stack_cups"),
        (("eval.episodes=0", "demos.source=human"), "obs/hand [T, 7], obs/cup [T, 7] and actions [T, 7]"),
    ],
)
def test_what_is_missing_is_said_before_training(tmp_path, words, message):
    ended = train(tmp_path, "task=stack_cups", "experiment=robot_cpu", *words)
    assert ended.returncode == 1
    assert message in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_simulated_task_names_its_environment():
    facts = {"name": "x", "observations": {"a": 1}, "action_dim": 7, "max_steps": 5}
    with pytest.raises(ValueError, match=r"task\.environment must be robosuite's name of the task, got ''"):
        TaskConfig(simulator="robosuite", **facts)
    with pytest.raises(ConfigError, match="task x has no simulator"):
        make_environment(TaskConfig(simulator="none", **facts))
