"""Pre-training of the masked auto-encoder on a folder and on a store of latents: figures, stops, what is refused."""

import json

import pytest
import torch
from image_files import truncate, write_images
from small_networks import small_autoencoder

from domains.imagenet import encode_latents, pretrain_mae, train
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.digits import digits_splits
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.data.latent_store import LatentStore
from domains.imagenet.data.section import held_out_data
from domains.imagenet.encode_latents import EncodeLatentsConfig
from domains.imagenet.encoders.section import EncoderSection, build_encoder
from domains.imagenet.generator import GeneratorConfig
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.mae_evaluation import MaeEvaluation
from domains.imagenet.mae_latents import refuse_other_latents
from domains.imagenet.mae_training import MaeEvalSection, MaeTrainingConfig, load_mae, missing_mae
from domains.imagenet.training_batches import TrainingBatches
from drifting.training.checkpoint_file import read_checkpoint
from drifting.training.config import typed
from drifting.training.errors import CheckpointError, ConfigError, RunDirError
from drifting.training.metrics_log import read_metrics
from drifting.training.run_dir import open_run


def config(root, data, **changes) -> MaeTrainingConfig:
    mae = {"channels": 3, "base_channels": 8, "blocks": [1, 1], "space_to_depth": 2, "max_groups": 2, "num_classes": 2}
    settings = {
        "run": {"name": "mae", "steps": 4, "root": str(root), "device": "cpu"},
        "data": data,
        "mae": mae | changes.pop("mae", {}),
        "optim": {"lr": 1e-3},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        "eval": {"every": 2},
        "batch": 6,
        "classification_steps": 2,
    }
    return typed(settings | changes, MaeTrainingConfig)


@pytest.fixture
def folders(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_images(tmp_path / split, {"cat": 6, "dog": 5}, seed=seed)
    common = {"kind": "folder", "size": 16, "crop": "random"}
    return common | {"path": str(tmp_path / "train"), "validation": str(tmp_path / "val")}


def run(settings) -> None:
    pretrain_mae.main.__wrapped__(settings)


def stop_at_two(monkeypatch) -> None:
    save = pretrain_mae.Checkpoint.save

    def save_then_stop(checkpoint, step):
        save(checkpoint, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain_mae.Checkpoint, "save", save_then_stop)


def test_images_may_move_once_a_checkpoint_knows_them(tmp_path, folders):
    first = config(tmp_path, folders)
    open_run(first.run, first)
    moved = config(tmp_path, folders | {"path": str(tmp_path / "moved"), "validation": ""})
    (tmp_path / "train").rename(tmp_path / "moved")
    with pytest.raises(RunDirError, match=r"data\.path: .*train -> .*moved\n"):
        run(moved)
    (tmp_path / "moved").rename(tmp_path / "train")
    run(first)
    (tmp_path / "train").rename(tmp_path / "moved")
    run(moved)
    write_images(tmp_path / "moved", {"cat": 7})
    with pytest.raises(CheckpointError, match="the run began with other training data"):
        run(moved)


def test_a_damaged_image_is_found_before_the_first_step(tmp_path, folders):
    for split in ("train", "val"):
        truncate(tmp_path / split / "dog" / "003.png")
        with pytest.raises(DataError, match=r"1 of 11 images .*dog/003\.png"):
            run(config(tmp_path / "runs", folders))
        assert not (tmp_path / "runs" / "mae").exists()
        (tmp_path / split / "dog" / "003.png").unlink()
    run(config(tmp_path / "runs", folders))


def test_a_folder_is_learnt_from_measured_and_gives_an_encoder(tmp_path, folders, capsys):
    run(config(tmp_path / "runs", folders))
    run_dir = tmp_path / "runs" / "mae"
    figures = json.loads((run_dir / "metrics.json").read_text())
    assert set(figures) == {"step", "held_out/error", "held_out/mean_error", "held_out/linear_accuracy"}
    assert "linear accuracy" in capsys.readouterr().out
    during = [line for line in read_metrics(run_dir) if "held_out/error" in line]
    assert [line["step"] for line in during] == [2]
    encoder = build_encoder(EncoderSection(kind="mae", run=str(run_dir), patch_sizes=[2]), (3, 16, 16))
    assert "layer2_mean" in encoder(torch.zeros(1, 3, 16, 16))


def test_a_stopped_run_continues_to_the_same_weights(tmp_path, folders, monkeypatch):
    run(config(tmp_path / "whole", folders))
    stop_at_two(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "halves", folders))
    monkeypatch.undo()
    [left] = missing_mae(tmp_path / "halves" / "mae")
    assert "stopped at step 2 of 4" in left.what
    run(config(tmp_path / "halves", folders, eval={"every": 0, "images": 3}))  # evaluation may differ
    assert missing_mae(tmp_path / "halves" / "mae") == []
    states = [load_mae(tmp_path / name / "mae").state_dict() for name in ("whole", "halves")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    path = "mae/checkpoints/step_00000004.pt"
    orders = [read_checkpoint(tmp_path / name / path).entries["batches"] for name in ("whole", "halves")]
    assert torch.equal(orders[0]["epochs"]["order"], orders[1]["epochs"]["order"])
    assert orders[0]["epochs"]["position"] == orders[1]["epochs"]["position"] == 4 * 6 % 11


def encode(tmp_path, split: str, out: str, vae: str) -> None:
    tokenizer = {"kind": "sd_kl", "path": str(tmp_path / vae)}
    settings = {"folder": str(tmp_path / split), "out": str(tmp_path / out), "size": 32, "workers": 1}
    encode_latents.main.__wrapped__(typed(settings | {"tokenizer": tokenizer}, EncodeLatentsConfig))


def test_a_store_of_latents_is_learnt_from(tmp_path, folders):
    small_autoencoder().save_pretrained(tmp_path / "vae")
    for split in ("train", "val"):
        encode(tmp_path, split, f"{split}.zarr", "vae")
    data = {"kind": "latents", "path": str(tmp_path / "train.zarr"), "validation": str(tmp_path / "val.zarr")}
    latents = config(tmp_path / "runs", data, mae={"channels": 4, "space_to_depth": 1})
    held_out = held_out_data(latents.data)
    rows = torch.arange(len(held_out))  # never noisy, never flipped
    assert torch.equal(held_out.read(rows, torch.Generator().manual_seed(0)), held_out.read(rows))
    run(latents)
    assert json.loads((tmp_path / "runs" / "mae" / "metrics.json").read_text())["held_out/mean_error"] > 0


def test_a_generator_of_other_latents_than_the_auto_encoder_s_is_refused(tmp_path, folders):
    small_autoencoder().save_pretrained(tmp_path / "vae")
    small_autoencoder(scaling_factor=0.5).save_pretrained(tmp_path / "scaled")
    retrained = small_autoencoder()
    with torch.no_grad():
        retrained.decoder.conv_out.weight.mul_(1.1)
    retrained.save_pretrained(tmp_path / "retrained")
    for vae in ("vae", "scaled", "retrained"):
        encode(tmp_path, "train", f"{vae}.zarr", vae)

    def generator(vae: str) -> ImagenetConfig:
        settings = {
            "run": {"name": "generator", "steps": 1, "root": str(tmp_path / "generators")},
            "data": {"kind": "latents", "path": str(tmp_path / f"{vae}.zarr"), "size": 32}
            | {"images": folders["path"], "test": folders["validation"]},
            "tokenizer": {"kind": "sd_kl", "path": str(tmp_path / vae)},
            "encoder": {"kind": "mae", "run": str(tmp_path / "runs" / "mae")},
        }
        return typed(settings, ImagenetConfig)

    def latents(vae: str) -> LatentStore:
        return LatentStore(tmp_path / f"{vae}.zarr")

    data = {"kind": "latents", "path": str(tmp_path / "vae.zarr")}
    run(config(tmp_path / "runs", data, mae={"channels": 4, "space_to_depth": 1}))
    encoder = generator("vae").encoder
    assert refuse_other_latents(encoder, latents("vae")) == ""
    with pytest.raises(
        ConfigError, match=r"(?s)pre-trained on other samples .*scale 0\.18215, now 0\.5.*pretrain_mae run"
    ):
        refuse_other_latents(encoder, latents("scaled"))
    with pytest.raises(ConfigError, match=r"latents of another tokenizer \(sd_kl of .*vae, sha256 .*; now .*retrained"):
        refuse_other_latents(encoder, latents("retrained"))
    fit = generator("retrained")
    fit.generator.dit = GeneratorConfig(channels=4, size=4, num_classes=2)
    fit.drift.classes_per_step = 2
    with pytest.raises(ConfigError, match="latents of another tokenizer"):
        train.main.__wrapped__(fit)
    assert not (tmp_path / "generators").exists()

    (tmp_path / "runs" / "mae" / "latents.json").unlink()  # as of an older version
    assert "does not say which latents it was pre-trained on" in refuse_other_latents(encoder, latents("retrained"))
    run(config(tmp_path / "runs", data, mae={"channels": 4, "space_to_depth": 1}))
    with pytest.raises(ConfigError, match="latents of another tokenizer"):
        refuse_other_latents(encoder, latents("retrained"))


def test_without_validation_nothing_is_measured_and_that_is_said(tmp_path, folders, capsys):
    run(config(tmp_path / "runs", folders | {"validation": ""}))
    assert "no held-out figures, as data.validation names nothing" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "mae" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("mae", "message"),
    [
        ({"channels": 1}, r"mae\.channels, .*images must be \[K, 1, H, W\], got \(1, 3, 16, 16\)"),
        ({"space_to_depth": 16}, r"divisible by space_to_depth"),
        ({"mask_patch": 3}, r"mask patch 3 does not divide the 8 x 8 grid"),
        ({"num_classes": 3}, r"mae\.num_classes must be 2, the classes of the data, or 0 for no head, got 3"),
    ],
)
def test_an_auto_encoder_of_other_samples_is_refused_before_the_run(tmp_path, folders, mae, message):
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path / "runs", folders, mae=mae))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["shard_generated", "parts"])
def test_ranks_that_shall_share_a_drifting_problem_are_refused(tmp_path, folders, key):
    with pytest.raises(ConfigError, match=rf"parallel\.{key} must be 1 in pre-training: .*, got 2"):
        run(config(tmp_path / "runs", folders, parallel={key: 2}))
    assert not (tmp_path / "runs").exists()


def test_data_that_are_not_there_are_listed(tmp_path, folders):
    absent = {"path": str(tmp_path / "no"), "validation": str(tmp_path / "nothing")}
    with pytest.raises(ConfigError, match=r"(?s)2 things are missing.*data\.path: .*/no.*data\.validation: .*/nothing"):
        run(config(tmp_path / "runs", folders | absent))


def test_held_out_figures_by_hand():
    """Two classes that a mean tells apart; the untrained decoder is made to answer zero."""
    labels = torch.arange(40) % 2
    shades = torch.where(labels == 0, -0.5, 0.5)[:, None, None, None] * torch.ones(1, 1, 8, 8)
    train, held_out = LabelledImages(shades, labels), LabelledImages(shades[:10], labels[:10])
    mae = MaskedAutoencoder(MaeConfig(channels=1, base_channels=8, blocks=(1, 1), max_groups=1)).eval()
    mae.decoder.head.weight.data.zero_()
    mae.decoder.head.bias.data.zero_()
    figures = MaeEvaluation(train, held_out, MaeEvalSection(batch=7), torch.device("cpu")).figures(mae)
    assert figures["held_out/error"] == pytest.approx(0.25, abs=1e-6)  # of zero in place of +-0.5
    assert figures["held_out/mean_error"] == pytest.approx(0.25, abs=1e-6)  # the mean image is zero
    assert figures["held_out/linear_accuracy"] == 1.0
    assert "held_out/linear_accuracy" not in MaeEvaluation(
        train, held_out, MaeEvalSection(probe_images=0), torch.device("cpu")
    ).figures(mae)
    other = LabelledImages(shades[:10], labels[:10], ("day", "night"))
    with pytest.raises(DataError, match=r"data\.validation must have the classes of data\.path"):
        MaeEvaluation(train, other, MaeEvalSection(), torch.device("cpu"))


def test_batches_go_through_every_sample_and_ranks_share_them():
    data = digits_splits().validation
    whole = TrainingBatches(data, 50, slice(0, 50), seed=3)
    parts = [TrainingBatches(data, 50, own, seed=3) for own in (slice(0, 20), slice(20, 50))]
    seen = []
    for step in range(6):  # one epoch of 300
        images, labels = whole.take(step)
        shares = [part.take(step) for part in parts]
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)
        seen.append(images)
    given = torch.cat(seen).flatten(1)
    assert torch.equal(torch.unique(given, dim=0), torch.unique(data.images.flatten(1), dim=0))
    with pytest.raises(ValueError, match="the run began with other training data"):
        TrainingBatches(digits_splits().test, 50, slice(0, 50), seed=3).load_state_dict(whole.state_dict())
