"""The commands of docs/imagenet.md, as they stand there, on twenty images: only their sizes are made small."""

import json
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domains.imagenet import judge

PAGE = Path(__file__).parents[2] / "docs" / "imagenet.md"
CLASSES, PER_CLASS = 2, 5
SMALL = {
    "pack_images": ["workers=1"],
    "encode_latents": ["workers=1", "batch=4"],
    "train_tokenizer": ["run.steps=2", "batch=2", "crop=16"],
    "pretrain_mae": ["run.steps=2", "classification_steps=1", "batch=4", "mae.num_classes=2", "mae.base_channels=8"],
    "train": [
        "run.steps=2",
        "generator.dit.num_classes=2",
        "generator.dit.hidden=16",
        "generator.dit.depth=1",
        "generator.dit.heads=2",
        "drift.classes_per_step=2",
        "drift.num_generated=4",
        "drift.num_positive=4",
        "drift.num_unconditional=2",
        "eval.samples_per_class=6",
        "eval.quick_samples=12",
        "eval.every=2",
    ],
    "evaluate": ["eval.alphas=[1.0,1.5]", "eval.samples_per_class=6", "eval.judges=1"],
}


def blocks() -> list[list[str]]:
    """The commands of each block of the page, in order."""
    parts = PAGE.read_text().split("```")[1::2]
    return [[line for line in part.strip().splitlines() if line.startswith("python -m domains")] for part in parts]


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            folder = root / "imagenette" / split / f"n0000000{label}"
            folder.mkdir(parents=True)
            for k in range(PER_CLASS):
                pixels = rng.integers(0, 128, (70, 90, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.jpg")


def run(monkeypatch, line: str) -> None:
    _, _, module, *arguments = shlex.split(line)
    name = module.removeprefix("domains.imagenet.")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *SMALL[name]])
    import_module(module).main()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "STEPS", 3)
    return tmp_path


def test_pixels_from_a_folder_to_a_table(folder, monkeypatch, capsys):
    for line in blocks()[0]:
        run(monkeypatch, line)
    assert "FD(judge) / real" in capsys.readouterr().out
    run_dir = folder / "runs" / "imagenette64_pixel"
    rows = json.loads((run_dir / "metrics.json").read_text())["rows"]
    assert list(rows) == ["training images", "alpha 1", "alpha 1.5"]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert "eval/FD(judge)/alpha_1" in last
    for picture in ("samples/step_00000002", "samples_alpha_1.5", "guidance_sweep", "nearest_training_images"):
        assert (run_dir / f"{picture}.png").exists()


def test_latents_from_a_folder_to_a_table(folder, monkeypatch):
    for line in [*blocks()[0][:2], *blocks()[1]]:
        run(monkeypatch, line)
    metrics = json.loads((folder / "runs" / "imagenette_latent" / "metrics.json").read_text())
    assert list(metrics["rows"]) == ["training images", "alpha 1"]
