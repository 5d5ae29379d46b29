"""Samples in a stream, the report on a run, figures during training, and images from elsewhere."""

import json
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import write_images

from domains.imagenet import check_measures as check_measures_module
from domains.imagenet import evaluate, measuring, pack_images, train
from domains.imagenet import judge as judge_module
from domains.imagenet.check_measures import check_images, check_measures
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.digits import digits_splits
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.data.section import DataSection
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.evaluate import EvaluateConfig, measure_images, opened, report, section_of_run
from domains.imagenet.evaluation import Evaluation
from domains.imagenet.measuring import missing_measures
from domains.imagenet.metrics.feature_network import Features
from domains.imagenet.metrics.image_batches import to_8_bits
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.pack_images import PackImagesConfig
from domains.imagenet.quick_evaluation import QuickEvaluation
from domains.imagenet.sample_stream import SampleStream, balanced_labels, first_of_classes
from drifting.training.checkpoint import Checkpoint
from drifting.training.config import typed
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError
from drifting.training.run_dir import open_run
from drifting.training.world import World

ALONE = World(torch.device("cpu"))


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(judge_module, "STEPS", 3)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return MlpGenerator(MlpConfig(hidden=16))


class Published:
    """Stands for Inception: its name, features of the pixels, only uint8."""

    name, width, resize = "inception", 64, "tf1"

    def features(self, images):
        assert images.dtype == torch.uint8
        flat = images.flatten(1).float() / 255
        return Features(flat, flat[:, :9], flat[:, :10])


def config_of(tmp_path, **evaluation) -> ImagenetConfig:
    settings = {
        "run": {"name": "small", "steps": 1, "root": str(tmp_path)},
        "generator": {"kind": "mlp", "mlp": {"hidden": 16}},
        "encoder": {"kind": "pixels"},
        "eval": {"alphas": [1.0, 2.0], "samples": 300, "judges": 2, "quick_samples": 100} | evaluation,
    }
    return typed(settings, ImagenetConfig)


def test_labels_are_balanced_and_every_part_holds_all_classes():
    labels = balanced_labels(10, 1003)
    assert sorted(labels.bincount().tolist()) == [100] * 7 + [101] * 3
    assert min(part.unique().numel() for part in labels[:1000].split(100)) == 10
    assert torch.equal(labels, balanced_labels(10, 1003))


def test_the_first_images_of_classes_are_found_in_order():
    assert first_of_classes(torch.tensor([1, 0, 2, 0, 1, 0]), 2, 2).tolist() == [1, 3, 0, 4]
    with pytest.raises(ValueError, match="at least 2 of class 2, got 1"):
        first_of_classes(torch.tensor([1, 0, 2, 0, 1, 0]), 3, 2)


def test_a_stream_is_the_same_in_any_batches_and_keeps_what_is_asked_for(generator):
    labels = balanced_labels(10, 70)
    whole = SampleStream(generator, labels, torch.float32, batch=70)
    parts = SampleStream(generator, labels, torch.float32, batch=9)
    (images,) = list(whole.at(1.5))
    keep = torch.tensor([69, 3, 8])
    torch.testing.assert_close(torch.cat(list(parts.at(1.5, keep))), images)
    torch.testing.assert_close(parts.shown(keep), images[keep])
    rounded = SampleStream(generator, labels, torch.uint8, rounding="truncate", batch=70)
    assert torch.equal(next(rounded.at(1.5)), to_8_bits(images, "truncate"))


def test_a_run_is_measured_by_judges(generator, tmp_path):
    config = config_of(tmp_path)
    folder = tmp_path / "small"
    folder.mkdir()
    found = Evaluation(config, {"": generator}, config.eval, folder, folder, ALONE).measured()
    assert list(found.rows) == ["training images", "alpha 1", "alpha 2"]
    real = found.rows["training images"]
    assert real["FD(judge) / real"] == real["std / real"] == 1
    assert real["nearest / real"] == pytest.approx(0, abs=1e-3)
    assert found.rows["alpha 1"]["FD(judge) / real"] > 2  # it has not learnt anything
    assert found.details["figures"]["training images"]["FD(judge)"] < found.details["figures"]["alpha 1"]["FD(judge)"]
    assert "alpha 2" in found.text
    assert len(list((tmp_path / ".judges").iterdir())) == 2
    assert {path.name for path in folder.iterdir()} == {
        "guidance_sweep.png",
        "nearest_training_images.png",
        "real_and_generated.png",
        "samples_alpha_1.png",
        "samples_alpha_2.png",
    }


def test_a_run_is_measured_by_the_published_network_on_8_bit_images(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("domains.imagenet.evaluation.load_inception_of", lambda *_: Published())
    config = config_of(tmp_path, network="inception")
    found = Evaluation(config, {"": generator}, config.eval, tmp_path, tmp_path, ALONE).measured()
    assert list(found.rows["alpha 1"]) == ["FID", "sFID", "IS", "KID", "precision", "recall"]
    assert "resize tf1" in found.text
    assert found.details["reference"] == "test images"
    assert not (tmp_path.parent / ".judges").exists()


def test_measures_that_cannot_be_are_refused_before_the_first_step(tmp_path, monkeypatch):
    def refuse(message, **evaluation):
        config = config_of(tmp_path / "runs", **evaluation)
        config.drift.classes_per_step = 10
        with pytest.raises(ConfigError, match=message):
            train.main.__wrapped__(config)
        assert not (tmp_path / "runs").exists()

    refuse(r"eval\.samples must be at least 10, one of every class, got 9", samples=9)
    inception = {"network": "inception", "inception": str(tmp_path / "inception.pth")}
    (tmp_path / "inception.pth").write_bytes(b"another network")
    refuse(r"inception\.pth is not the published file", **inception)
    monkeypatch.setattr(check_measures_module, "published_weights", lambda path: b"")
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "resize": np.array("tf1"), "network": "inception"}
    inception["reference"] = str(tmp_path / "ours.npz")
    np.savez(inception["reference"], **statistics)
    refuse(r"ours\.npz was made with resize 'tf1', this evaluation has 'half_pixel'", **inception, resize="half_pixel")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 8, 8)))
    refuse(r"arr_0 must be uint8", **inception, reference_images=str(tmp_path / "images.npz"))
    np.savez(inception["reference"], mu=np.zeros(64), sigma=np.eye(64))
    refuse(r"ours\.npz has statistics of 64 features, inception has 2048", **inception)


def test_fewer_samples_on_the_way_than_ranks_are_refused():
    section = EvalSection(quick_samples=10, every=5)
    with pytest.raises(ConfigError, match=r"eval\.quick_samples must be at least 16, one for each rank, got 10"):
        check_measures(section, 10, ranks=16)
    check_measures(replace(section, every=None), 10, ranks=16)


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ({"cat": 3, "eel": 3}, 8, r"data\.test must have the classes .*: it lacks dog, it has eel besides"),
        ({"cat": 3, "dog": 3}, 12, r"data\.test must hold images of 3 x 8 x 8, as samples are, got 3 x 12 x 12"),
    ],
)
def test_held_out_images_of_other_classes_or_another_size_are_refused_before_the_first_step(
    tmp_path, counts, size, message
):
    write_images(tmp_path / "train", {"cat": 8, "dog": 8})
    write_images(tmp_path / "test", counts)
    for split, side in (("train", 8), ("test", size)):
        folder = str(tmp_path / split)
        pack_images.main.__wrapped__(PackImagesConfig(folder=folder, out=f"{folder}.zarr", size=side))
    config = config_of(tmp_path / "runs", neighbours=0)
    config.data = DataSection(
        kind="pixels", path=str(tmp_path / "train.zarr"), test=str(tmp_path / "test.zarr"), size=size
    )
    config.generator.mlp = MlpConfig(hidden=16, channels=3, num_classes=2)
    config.drift.classes_per_step, config.drift.num_positive, config.drift.num_unconditional = 2, 4, 4
    with pytest.raises(DataError, match=message):
        train.main.__wrapped__(config)
    assert not (tmp_path / "runs").exists()


def test_a_class_without_held_out_images_is_refused():
    images = LabelledImages(torch.zeros(3, 1, 8, 8), torch.tensor([0, 2, 2]))
    with pytest.raises(DataError, match=r"data\.test has 1 classes without images: 1$"):
        check_images({"data.test": images}, (1, 8, 8), 3)
    with pytest.raises(DataError, match=r"data\.test must have 4 classes, as the generator, got 3"):
        check_images({"data.test": images}, (1, 8, 8), 4)


def test_every_average_of_a_run_is_measured_at_every_scale_on_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "samples_per_second", lambda *_, **__: 1.0)
    config = config_of(tmp_path, samples=60, judges=1, neighbours=0, ema="all")
    config.ema.decays = [0.9, 0.99]
    run_dir = open_run(config.run, config)
    torch.manual_seed(0)
    ema = Ema(config.generator.build(), config.ema.decays)
    ema.update(config.generator.build())
    Checkpoint(run_dir, ema=ema).save(3)
    rows = report(run_dir, config.eval)
    names = [f"ema {decay}, alpha {alpha}" for decay in (0.9, 0.99) for alpha in (1, 2)]
    assert list(rows) == ["training images", *names]
    sheets = {f"samples_ema_{decay}_alpha_{alpha}.png" for decay in (0.9, 0.99) for alpha in (1, 2)}
    assert {path.name for path in run_dir.glob("samples_*.png")} == sheets
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert (metrics["step"], metrics["ema"], list(metrics["rows"])) == (3, [0.9, 0.99], list(rows))
    for ema, row in (("first", names[1]), ([0.99], names[3])):  # alone, they are as together
        alone = report(run_dir, replace(config.eval, ema=ema, alphas=[2.0]), out=tmp_path / "alone")
        assert list(alone) == ["training images", "alpha 2"]
        assert alone["alpha 2"] == rows[row]
    assert rows[names[1]] != rows[names[3]]


def test_averages_that_a_run_does_not_keep_are_refused_with_those_that_it_keeps(tmp_path):
    refusal = r"eval\.ema must be first, all, or of the run's ema\.decays=\[0\.999\], got \[0\.5\]"
    with pytest.raises(ConfigError, match=refusal):
        config_of(tmp_path, ema=[0.999, 0.5])
    config = config_of(tmp_path)
    run_dir = open_run(config.run, config)
    with pytest.raises(ConfigError, match=refusal):
        report(run_dir, replace(config.eval, ema=[0.5]))


def test_figures_during_training_cost_no_second_judge(generator, tmp_path, monkeypatch):
    config = config_of(tmp_path)
    first = QuickEvaluation(config, tmp_path / "small", World(torch.device("cpu"))).figures(generator)
    assert first.keys() >= {"eval/FD(judge)/alpha_1", "eval/FD(judge)/alpha_2", "eval/IS(judge)/alpha_1"}
    monkeypatch.setattr(judge_module, "train_judge", lambda *_: pytest.fail("it is in the cache"))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert QuickEvaluation(config, tmp_path / "small", World(torch.device("cpu"))).figures(generator) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_is_measured_as_it_was_trained_but_for_the_keys_that_are_given(tmp_path):
    config = config_of(tmp_path, network="inception", samples=None, samples_per_class=50, reference="ours.npz")
    run_dir = open_run(config.run, config)
    asked = EvalSection(alphas=[3.0], resize="half_pixel", reference="theirs.npz")
    given = frozenset({"run", "eval.resize", "eval.reference"})
    section = section_of_run(run_dir, asked, given)
    assert section == replace(config.eval, resize="half_pixel", reference="theirs.npz")
    assert section_of_run(run_dir, asked, frozenset({"run"})) == config.eval
    assert section_of_run(run_dir, asked, None) == asked


def test_moved_images_and_another_device_are_taken_from_the_command_line(generator, tmp_path, monkeypatch):
    config = config_of(tmp_path)
    config.run.device, config.data = "cuda", DataSection(kind="pixels", path="train.zarr", test="gone.zarr", size=64)
    run_dir = open_run(config.run, config)
    seen = {}
    monkeypatch.setattr(evaluate, "load_averages", lambda run_dir, section: (config, {"": generator}, 1))
    monkeypatch.setattr(evaluate, "missing_measures", lambda section, data: seen.update(data=data) or [])

    def evaluation(*given):
        seen["device"] = given[-1].device.type
        raise StopIteration

    monkeypatch.setattr(evaluate, "Evaluation", evaluation)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={run_dir}", *words])
        with pytest.raises((StopIteration, SystemExit)) as ended:
            evaluate.main()
        return str(ended.value)

    command("data.test=moved.zarr", "device=cpu")
    assert seen == {"data": replace(config.data, test="moved.zarr"), "device": "cpu"}
    command()
    there_is = "cuda" if torch.cuda.is_available() else "cpu"  # whatever the run was trained on
    assert seen == {"data": config.data, "device": there_is}
    refused = command("data.size=32", "eval.quick_samples=20")
    assert "data.size, eval.quick_samples: without effect where run is given" in refused
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "images=x.npz", "out=out", "eval.alphas=[1.5]"])
    with pytest.raises(SystemExit, match=r"eval\.alphas: without effect where images is given"):
        evaluate.main()


def test_everything_that_is_missing_is_found_together(tmp_path):
    data = config_of(tmp_path).data
    section = EvalSection(network="inception", reference=str(tmp_path / "no.npz"), reference_images=str(tmp_path / "x"))
    settings = [missing.setting for missing in missing_measures(section, data)]
    assert settings == ["eval.inception", "eval.reference", "eval.reference_images"]
    assert missing_measures(EvalSection(), data) == []
    with pytest.raises(ConfigError, match=r"eval.reference must be empty for eval.network=judge"):
        missing_measures(EvalSection(reference="x.npz"), data)
    [reference] = [missing for missing in missing_measures(section, data) if missing.setting == "eval.reference"]
    *told, made = reference.command.splitlines()
    assert all(line.startswith("# ") for line in told)  # all of it may be pasted
    assert "github.com/openai/guided-diffusion" in reference.command
    assert shlex.split(made)[3:] == ["images=FOLDER", f"out={section.reference}", "inception=FILE", "resize=tf1"]
    config = EvaluateConfig(images=str(tmp_path / "none.npz"), out=str(tmp_path / "out"), eval=section)
    with pytest.raises(ConfigError, match=r"(?s)4 things are missing.*images: .*eval.inception.*curl"):
        measure_images(config)
    assert not (tmp_path / "out").exists()


def test_images_from_elsewhere_are_measured(tmp_path, monkeypatch):
    digits = to_8_bits(digits_splits().train.images, "nearest").repeat(1, 3, 1, 1)
    np.savez(tmp_path / "samples.npz", arr_0=digits.permute(0, 2, 3, 1).contiguous().numpy())
    config = EvaluateConfig(images=str(tmp_path / "samples.npz"), out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"samples.npz: images must be \[k, 1, 8, 8\] for this judge, got \(997, 3, 8, 8\)"
    ):
        measure_images(config)

    class Grey(Published):
        def features(self, images):
            return super().features(images[:, :1])

    monkeypatch.setattr(measuring, "load_inception_of", lambda *_: Grey())
    monkeypatch.setattr(measuring, "missing_inception", lambda *_: [])
    config.eval.network = "inception"
    figures = measure_images(config)
    assert figures["FID"] < 0.5  # real digits, against held-out ones
    assert figures["precision"] > 0.8
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (told["samples"], told["network"], told["reference"]) == (997, "inception", "test images")
    assert (told["resize"], told["inception_score"]) == ("tf1", "adm")


def test_parts_of_a_folder_hold_all_classes(tmp_path):
    write_images(tmp_path / "images", {"a": 12, "b": 12}, sides=(8, 8))
    data = ImageFolder(tmp_path / "images", size=8)
    parts = list(opened(str(tmp_path / "images"), 8, batch=8))
    whole = data.read(torch.arange(24)).flatten(1)
    labels = [[int((whole == image.flatten()).all(1).nonzero()) // 12 for image in part] for part in parts]
    assert [len(part) for part in labels] == [8, 8, 8]
    assert sorted(label for part in labels for label in part) == [0] * 12 + [1] * 12
    assert all(set(part) == {0, 1} for part in labels)
    assert torch.equal(torch.cat(parts), torch.cat(list(opened(str(tmp_path / "images"), 8, batch=24))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": []}, "eval.alphas must be one or more guidance scales"),
        ({"network": "resnet"}, "eval.network must be judge or inception, got 'resnet'"),
        ({"ema": []}, r"eval.ema must be first, all, or a list of decays, got \[\]"),
        ({"ema": "best"}, "eval.ema must be first, all, or a list of decays, got 'best'"),
        ({"resize": "bicubic"}, "eval.resize must be tf1 or half_pixel"),
        ({"every": 0}, "eval.every must be at least 1, or null, got 0"),
        ({"quick_samples": 9}, "eval.quick_samples must be at least 10, got 9"),
    ],
)
def test_sections_refuse_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalSection(**settings)
