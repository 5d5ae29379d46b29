"""Training of a small autoencoder: its loss, a run that stops and goes on, and the tokenizer that it leaves."""

import json

import pytest
import torch
from image_files import write_images

from domains.imagenet import train_tokenizer
from domains.imagenet.data.section import DataSection, load_training_data
from domains.imagenet.tokenizer_training import AutoencoderSection, TokenizerTrainingConfig
from domains.imagenet.tokenizers import TokenizerSection, missing_tokenizer
from domains.imagenet.tokenizers.training_loss import TokenizerTraining, edge_difference, peak_signal_to_noise
from domains.imagenet.train_tokenizer import random_squares
from drifting.training.checkpoint_file import read_checkpoint
from drifting.training.config import typed
from drifting.training.errors import ConfigError

SMALL = {"patch": 2, "width": 8, "blocks": 1}


@pytest.fixture
def data(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_images(tmp_path / split, {"cat": 6, "dog": 5}, seed=seed)
    return {"kind": "folder", "size": 16, "path": str(tmp_path / "train"), "validation": str(tmp_path / "val")}


def config(root, data, **changes) -> TokenizerTrainingConfig:
    settings = {
        "run": {"name": "small", "steps": 4, "root": str(root), "device": "cpu"},
        "data": data,
        "autoencoder": SMALL,
        "optim": {"lr": 1e-3},
        "ema": {"decays": [0.5]},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        "eval": {"every": 2},
        "batch": 4,
        "crop": 8,
    }
    return typed(settings | changes, TokenizerTrainingConfig)


def run(settings) -> None:
    train_tokenizer.main.__wrapped__(settings)


def test_it_leaves_a_tokenizer_of_unit_latents_and_resumes_exactly(tmp_path, data, monkeypatch, capsys):
    run(config(tmp_path / "whole", data))
    folder = tmp_path / "whole" / "small" / "tokenizer"
    section = TokenizerSection(kind="small_kl", path=str(folder))
    assert missing_tokenizer(section) == []
    tokenizer = section.build()
    assert (tokenizer.channels, tokenizer.downscale) == (4, 2)
    images = load_training_data(DataSection(**data)).read(torch.arange(11)).float() / 127.5 - 1
    latents = tokenizer.encode(images, torch.Generator().manual_seed(0))
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4)
    assert float(latents.std()) == pytest.approx(1, abs=1e-4)
    report = json.loads((tmp_path / "whole" / "small" / "metrics.json").read_text())
    assert report["scale"] == pytest.approx(tokenizer.scale)
    assert report["shift"] == pytest.approx(tokenizer.shift)
    held_out = train_tokenizer.load_images(DataSection(**data), "validation").read(torch.arange(11)).float() / 127.5 - 1
    errors = (tokenizer.decode(tokenizer.encode(held_out)).clamp(-1, 1) - held_out).square().mean((1, 2, 3))
    assert report["held_out/psnr"] == pytest.approx(float(peak_signal_to_noise(errors).mean()), abs=1e-3)
    assert f"held-out PSNR {report['held_out/psnr']:.2f} dB" in capsys.readouterr().out

    save = train_tokenizer.Checkpoint.save

    def save_then_stop(checkpoint, step):
        save(checkpoint, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_tokenizer.Checkpoint, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "halves", data))
    assert missing_tokenizer(TokenizerSection(kind="small_kl", path=str(tmp_path / "halves" / "small" / "tokenizer")))
    monkeypatch.undo()
    run(config(tmp_path / "halves", data))
    path = "small/checkpoints/step_00000004.pt"
    averages = [
        read_checkpoint(tmp_path / name / path).entries["ema"]["averages"]["0.5"] for name in ("whole", "halves")
    ]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_the_loss_by_hand():
    torch.manual_seed(0)
    autoencoder = AutoencoderSection(**SMALL).build().eval()
    images, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 4, 4, 4)
    losses = TokenizerTraining(autoencoder, edge_weight=0.5, kl_weight=0.1)(images, noise)
    posterior = autoencoder.encode(images).latent_dist
    decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, posterior.std), standard)
    torch.testing.assert_close(losses.kl, kl.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.absolute, (decoded - images).abs().mean((1, 2, 3)))
    expected = losses.absolute + 0.5 * edge_difference(decoded - images) + 0.1 * losses.kl
    torch.testing.assert_close(losses.loss, expected)
    losses.loss.sum().backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None] == []


def test_a_fresh_autoencoder_is_linear_and_knows_how_bright_an_image_is():
    torch.manual_seed(0)
    autoencoder = AutoencoderSection(patch=4, width=8, blocks=2).build()
    x, y = torch.randn(2, 1, 3, 16, 16)
    means = [autoencoder.encode(image).latent_dist.mean for image in (x, y, x + y, torch.zeros_like(x))]
    assert means[0].shape == (1, 4, 4, 4)
    torch.testing.assert_close(means[2], means[0] + means[1] - means[3], rtol=1e-4, atol=1e-5)
    assert autoencoder.decode(means[0]).sample.shape == x.shape
    brighter = autoencoder.encode(2 * x).latent_dist.mean - means[3]  # a norm would not see the factor
    torch.testing.assert_close(brighter, 2 * (means[0] - means[3]), rtol=1e-4, atol=1e-5)


def test_edges_at_three_scales():
    assert torch.equal(edge_difference(torch.full((1, 3, 8, 8), 0.7)), torch.zeros(1))  # a shade is no edge
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # 1 to the next pixel, 2 to the next square of 2, 4 to that of 4
    torch.testing.assert_close(edge_difference(ramp), torch.tensor([1.0 + 2 + 4]))
    checks = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 1, 8, 8)
    torch.testing.assert_close(edge_difference(checks), torch.tensor([2.0]))  # both ways; averaged squares are flat


def test_psnr_of_known_errors():
    torch.testing.assert_close(peak_signal_to_noise(torch.tensor([4.0, 0.04])), torch.tensor([0.0, 20.0]))


def test_random_squares_are_parts_of_their_images_everywhere():
    images = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    source, places = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        for image, square in zip(images, random_squares(images, 4, source), strict=True):
            top, left = divmod(int((image[0] == square[0, 0, 0]).nonzero()[0] @ torch.tensor([6, 1])), 6)
            assert torch.equal(square, image[:, top : top + 4, left : left + 4])
            places.add((top, left))
    assert places == {(top, left) for top in range(3) for left in range(3)}
    assert torch.equal(random_squares(images, 0, source), images)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"crop": 20}, ConfigError, r"crop must be at most 16, the side of the images, got 20"),
        ({"crop": 3}, ValueError, r"crop must be a multiple of 2, or 0 for none, got 3"),
        ({"autoencoder": SMALL | {"patch": 0}}, ValueError, r"autoencoder\.patch must be at least 1, got 0"),
        ({"autoencoder": SMALL | {"patch": 32}, "crop": 0}, ConfigError, r"sides divisible by 32, got 16 x 16"),
        ({"data": {"kind": "digits"}}, ValueError, r"data\.kind must be folder or pixels"),
        ({"parallel": {"parts": 2}}, ConfigError, r"parallel\.parts must be 1 for a tokenizer"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_the_run(tmp_path, data, changes, error, message):
    with pytest.raises(error, match=message):
        run(config(tmp_path / "runs", changes.pop("data", data), **changes))
    assert not (tmp_path / "runs").exists()
