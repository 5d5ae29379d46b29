"""`python -m domains.imagenet.sample` from published weights: latents through an autoencoder, and pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import some_generator, some_vae

from domains.imagenet import sample
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.hub import WeightsError
from domains.imagenet.sample import SampleConfig, chosen_classes
from drifting.training.checkpoint import Checkpoint
from drifting.training.config import typed
from drifting.training.draws import stream
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.run_dir import open_run


def run(**settings) -> None:
    sample.main.__wrapped__(SampleConfig(**settings))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    some_generator().save_pretrained(tmp_path / "latent")
    some_generator(3).save_pretrained(tmp_path / "pixel")
    some_vae().save_pretrained(tmp_path / "vae")
    some_vae(5).save_pretrained(tmp_path / "other")
    return {path.name: str(path) for path in tmp_path.iterdir()} | {"out": str(tmp_path / "out")}


def test_latents_are_decoded_and_batches_do_not_matter(folders, tmp_path, capsys):
    settings = {"model": folders["latent"], "vae": folders["vae"], "classes": [3, 7], "per_class": 2, "alpha": 1.5}
    run(**settings, out=str(tmp_path / "one"))
    run(**settings, out=str(tmp_path / "two"), batch=3)
    names = ["00000_class3.png", "00001_class3.png", "00002_class7.png", "00003_class7.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [*names, "sheet.png"]
    assert "4 images of" in capsys.readouterr().out
    sheet = pixels(tmp_path / "one" / "sheet.png")  # a class per row, enlarged twice, one white pixel between images
    assert sheet.shape == (2 * (2 * 17 + 1), 2 * (2 * 17 + 1), 3)
    for index, name in enumerate(names):
        image = pixels(tmp_path / "one" / name)
        assert image.shape == (16, 16, 3) and image.std() > 0
        assert np.abs(image - pixels(tmp_path / "two" / name)).max() <= 1  # rounding
        top, left = (2 * (1 + 17 * (index // 2)), 2 * (1 + 17 * (index % 2)))
        assert np.array_equal(sheet[top : top + 32 : 2, left : left + 32 : 2], image)


def test_pixels_are_images(folders, tmp_path):
    run(model=folders["pixel"], out=folders["out"], per_class=1, classes=[1], seed=4)
    image = pixels(tmp_path / "out" / "00000_class1.png")
    source = stream(4, "samples", 0)
    noise, style = torch.randn(64, 3, 8, 8, generator=source)[:1], torch.randint(5, (64, 3), generator=source)[:1]
    with torch.no_grad():
        expected = some_generator(3)(noise, torch.tensor([1]), torch.ones(1), style)[0].permute(1, 2, 0)
    assert np.abs(image - (127.5 * (expected + 1)).clamp(0, 255).numpy()).max() <= 0.51


def test_any_average_of_a_run_is_drawn_from(tmp_path):
    torch.manual_seed(0)
    settings = {
        "run": {"name": "small", "steps": 1, "root": str(tmp_path)},
        "generator": {"kind": "mlp", "mlp": {"hidden": 16}},
        "ema": {"decays": [0.9, 0.99]},
    }
    config = typed(settings, ImagenetConfig)
    ema = Ema(config.generator.build(), config.ema.decays)
    ema.update(config.generator.build())
    run_dir = open_run(config.run, config)
    Checkpoint(run_dir, ema=ema).save(1)
    for decay in (None, 0.9, 0.99):
        run(run=str(run_dir), classes=[1], per_class=1, decay=decay)
    first, again, other = (
        pixels(run_dir / "samples" / f"alpha1_seed0{average}" / "00000_class1.png")
        for average in ("", "_ema0.9", "_ema0.99")
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    with pytest.raises(ConfigError, match=r"decay must be one of the run's ema\.decays=\[0\.9, 0\.99\], got 0\.5"):
        run(run=str(run_dir), decay=0.5)
    with pytest.raises(ValueError, match=r"decay must be left away, where model is given, got 0\.9"):
        SampleConfig(model="x", out="y", decay=0.9)


def test_without_classes_all_of_few_or_known_ones_of_a_thousand_are_drawn():
    assert chosen_classes([], 4) == [0, 1, 2, 3]
    assert chosen_classes([], 100) == list(range(10))
    shown = chosen_classes([], 1000)
    assert len(set(shown)) == 8 and 0 <= min(shown) <= max(shown) < 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "latent"}, r"latents of 4 channels: set vae=<folder or Hub id>"),
        ({"model": "latent", "vae": "other"}, r"vae=.*other decodes 5 channels, this generator makes 4"),
        ({"model": "pixel", "vae": "vae"}, "vae must be left away: this generator makes images of 3 channels"),
        ({"model": "pixel", "classes": [3, 10]}, r"classes must be labels in 0\.\.9, got \[3, 10\]"),
        ({"model": "pixel", "device": "warp"}, r"device must be auto, cpu or a device of this machine, got 'warp'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(folders, tmp_path, settings, message):
    given = {name: folders.get(value, value) if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        run(out=folders["out"], **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_network_is_named(folders):
    with pytest.raises(WeightsError, match=r"model=.*vae has no file .*; it holds"):
        run(model=folders["vae"], out=folders["out"])


def test_either_a_run_or_a_model():
    for both in ({}, {"run": "x", "model": "y", "out": "z"}):
        with pytest.raises(ValueError, match=r"run must be a run directory, or model=<folder or Hub id>, and not both"):
            SampleConfig(**both)
    with pytest.raises(ValueError, match="out must be a folder for the images, where model is given"):
        SampleConfig(model="x")
