"""The step of a recipe that is timed on a GPU is a whole one: weights and averages move, every part has its time."""

import json

import pytest
import torch

from benchmarks import drift_loss_gpu, recipe_steps
from benchmarks.scaling_estimate import Machine
from benchmarks.scaling_recipes import QUICK


def test_a_tiny_recipe_runs_and_says_where_its_time_goes(tmp_path):
    recipe_steps.main(["--quick", "--steps", "2", "--root", str(tmp_path)])
    (result,) = json.loads((tmp_path / "recipe_steps.json").read_text())["results"]
    assert (result["recipe"], result["labels"], len(result["seconds"])) == ("quick", 1, 2)
    parts = {name: seconds for name, seconds in result["regions"].items() if name != "other"}
    assert set(parts) == {"generator", "encoder", "loss", "backward", "update"}
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= max(result["seconds"]) * 1.2


def test_a_step_moves_weights_and_averages(monkeypatch):
    seen = {}
    monkeypatch.setattr(recipe_steps, "Ema", lambda *given: seen.setdefault("ema", Recorded(*given)))
    plan = recipe_steps.fastest_plan(QUICK[0], 8, Machine())
    timer = recipe_steps.StepTimer(torch.device("cpu"))
    step = recipe_steps.whole_step(QUICK[0], plan, 2, torch.device("cpu"), timer, compile=False)
    step()
    before, after = seen["ema"].weights
    assert not torch.equal(before, after)


class Recorded:
    """The first weight as the average is made, and at its update."""

    def __init__(self, generator, decays):
        self.weights = [next(generator.parameters()).detach().clone()]

    def update(self, generator):
        self.weights.append(next(generator.parameters()).detach().clone())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/cuda measures on it")
def test_without_a_gpu_both_say_what_to_run_instead():
    with pytest.raises(SystemExit, match="drift_loss measures on a CPU"):
        drift_loss_gpu.main([])
    with pytest.raises(SystemExit, match="--quick"):
        recipe_steps.main([])
