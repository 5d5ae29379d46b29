"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_the_example_runs_and_learns():
    example, *_ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)  # the others: in the domains' tests
    assert len([line for line in example.splitlines() if line]) == 8
    scope: dict = {}
    torch.manual_seed(0)
    exec(example, scope)
    samples = scope["model"](torch.randn(2000, 8))
    assert samples.mean(0).tolist() == pytest.approx([3, 3], abs=0.2)
    assert samples.std(0).tolist() == pytest.approx([1, 1], abs=0.2)


def test_pictures_and_commands_exist():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).stat().st_size < 300_000
    for module in set(re.findall(r"python -m ([a-z_.]+)", README)):
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).exists(), module
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in (REPOSITORY / "Makefile").read_text()
