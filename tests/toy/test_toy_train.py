"""The command `python -m domains.toy.train`: what it writes, learns, refuses, and that it resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from domains.toy import train as toy_train
from domains.toy.config import DriftConfig, FilmConfig, ParticleConfig, ToyConfig
from domains.toy.film import geometric_steps
from drifting.training.checkpoint_file import checkpoint_paths, read_checkpoint
from drifting.training.config import CheckpointConfig, LogConfig, RunConfig, typed
from drifting.training.errors import ConfigError
from drifting.training.metrics_log import read_metrics
from drifting.training.world import World

CHECKOUT = Path(__file__).parents[2]
WRITTEN = ["figure3.gif", "figure3.png", "figure4.gif", "figure4.png", "metrics.jsonl", "results.json"]


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_command(*overrides, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    call = [sys.executable, "-m", "domains.toy.train", *overrides]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def tiny(root, **sections):
    return ToyConfig(
        run=RunConfig(name="tiny", steps=12, root=str(root), device="cpu"),
        particles=ParticleConfig(num=20, iterations=2),
        drift=sections.get("drift", DriftConfig(generated=16, positives=16)),
        film=FilmConfig(frames=4, points=20),
        checkpoint=CheckpointConfig(every=5),
        log=LogConfig(every=2),
    )


def trained(config):
    run_dir = Path(config.run.root) / config.run.name
    run_dir.mkdir(parents=True, exist_ok=True)
    return toy_train.train(config, run_dir, World(torch.device("cpu"))), run_dir


def test_the_command_writes_figures_numbers_and_a_run(tmp_path):
    done = run_command("experiment=toy_smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "runs" / "toy_smoke"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    for name in WRITTEN:
        assert (run_dir / name).stat().st_size > 0
        assert str(Path("runs/toy_smoke") / name) in done.stdout
    assert [path.name for path in checkpoint_paths(run_dir)] == ["step_00000010.pt", "step_00000020.pt"]
    with Image.open(run_dir / "figure4.gif") as film:
        assert film.n_frames == len(geometric_steps(20, 4))
    results = json.loads((run_dir / "results.json").read_text())
    assert [row["target"] for row in results["figure4"]] == ["swiss_roll", "checkerboard"]
    assert len(results["figure3"]) == 3


def test_a_finished_run_draws_the_same_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy_train, "EVALUATED", 200)
    toy_train.main.__wrapped__(tiny(tmp_path))
    printed = capsys.readouterr().out
    run_dir = tmp_path / "tiny"
    before = {name: (run_dir / name).read_bytes() for name in WRITTEN}
    for name in WRITTEN:
        if name != "metrics.jsonl":
            (run_dir / name).unlink()
    monkeypatch.setattr(toy_train, "optimizer_step", None)  # nothing is trained again
    toy_train.main.__wrapped__(tiny(tmp_path))
    assert capsys.readouterr().out == printed
    assert {name: (run_dir / name).read_bytes() for name in WRITTEN} == before


def test_the_command_refuses_an_unknown_key(tmp_path):
    done = run_command("drift.temprature=0.1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Key 'temprature' not in 'DriftConfig'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "section, key, value",
    [("run", "steps", 0), ("drift", "generated", 1), ("film", "frames", 3), ("generator", "width", 0)],
)
def test_sections_refuse_nonsense(section, key, value):
    given = {"run": {"name": "x", "steps": 1}}
    given[section] = given.get(section, {}) | {key: value}
    with pytest.raises(ConfigError, match=rf"{section}\.{key} must be at least .*, got {value}"):
        typed(given, ToyConfig)


def test_a_short_training_approaches_both_targets(tmp_path):
    config = tiny(tmp_path, drift=DriftConfig(generated=64, positives=64))
    config.run.steps = 60
    (generator, film), run_dir = trained(config)
    assert film.steps == geometric_steps(60, 4)
    for index in range(2):
        (row,) = [toy_train.evaluate(index, generator, config, run_dir, torch.device("cpu"))]
        untrained = film.frames[0][index]
        start = toy_train.energy_distance(untrained, list(toy_train.TARGETS.values())[index].draw(500))
        assert start > 0.25
        assert row.distance < 0.25 * start
        assert row.distance_real < 0.01


def test_resumed_equals_undisturbed(tmp_path, monkeypatch):
    _, undisturbed = trained(tiny(tmp_path / "a"))

    step, calls = toy_train.optimizer_step, []

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == 9:  # four steps after the checkpoint of step 5
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(toy_train, "optimizer_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny(tmp_path / "b"))
    monkeypatch.undo()
    (_, film), resumed = trained(tiny(tmp_path / "b"))

    assert film.steps == geometric_steps(12, 4)
    ours, theirs = (read_checkpoint(checkpoint_paths(path)[-1]) for path in (resumed, undisturbed))
    assert ours.step == theirs.step == 12
    torch.testing.assert_close(ours.entries, theirs.entries, rtol=0, atol=0)

    def figures(run_dir):
        return read_metrics(run_dir, timings=False)

    assert figures(resumed) == figures(undisturbed)


def test_the_two_networks_train_as_if_alone(tmp_path):
    """The loss of a problem depends on its own samples only, since nothing is normalised over the batch."""
    torch.manual_seed(0)
    generated, real = torch.randn(2, 8, 2), torch.randn(2, 8, 2)
    loss = toy_train.build_loss(DriftConfig())
    together = loss.terms(generated, real).loss
    scaled = loss.terms(generated * torch.tensor([1.0, 20.0])[:, None, None], real).loss
    torch.testing.assert_close(together[0], scaled[0])
    torch.testing.assert_close(together[0], loss.terms(generated[:1], real[:1]).loss[0])


def test_geometric_steps():
    assert geometric_steps(1, 4) == [0, 1]
    steps = geometric_steps(1500, 32)
    assert steps[0] == 0
    assert steps[-1] == 1500
    assert len(steps) <= 32
    assert len(steps) == len(set(steps))
    assert sum(step < 150 for step in steps) > len(steps) / 2
