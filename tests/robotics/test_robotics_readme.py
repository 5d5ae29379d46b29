"""What the README shows of robot policies runs as it stands."""

import re
from pathlib import Path

import torch
from task_files import task_of

from domains.robotics.config import MlpConfig, PolicyConfig
from domains.robotics.policy import DriftingPolicy

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(policy = .*?)```", README.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    config = PolicyConfig(net="mlp", mlp=MlpConfig(hidden=8, depth=1))
    DriftingPolicy(task_of("lift"), config).save_pretrained("runs/lift/policy")
    scope = {"torch": torch, "DriftingPolicy": DriftingPolicy}
    exec(example, scope)
    assert scope["actions"].shape == (1, 8, 7)
