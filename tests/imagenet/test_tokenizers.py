"""The tokenizer: scaled latents both ways, and a quick, clear answer where its weights are not to be had."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from small_networks import small_autoencoder

from domains.imagenet import hub
from domains.imagenet.hub import WeightsError
from domains.imagenet.tokenizers import (
    SD_VAE,
    KlTokenizer,
    PixelTokenizer,
    TokenizerSection,
    load_tokenizer,
    missing_tokenizer,
)

SCALE = 0.18215


@pytest.fixture
def folder(tmp_path):
    small_autoencoder().save_pretrained(tmp_path)
    return tmp_path


def test_mean_sample_and_decoder_are_those_of_the_library(folder):
    autoencoder = small_autoencoder()
    tokenizer = load_tokenizer("sd_kl", folder)
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
        torch.testing.assert_close(tokenizer.encode(images), SCALE * posterior.mean)
        sample = posterior.sample(torch.Generator().manual_seed(3))
        given = tokenizer.encode(images, torch.Generator().manual_seed(3))
        torch.testing.assert_close(given, SCALE * sample)
        decoded = tokenizer.decode(given)
        torch.testing.assert_close(decoded, autoencoder.decode(sample).sample, rtol=1e-4, atol=1e-4)
    assert given.shape == (2, tokenizer.channels, 32 // tokenizer.downscale, 16 // tokenizer.downscale)
    assert decoded.shape == images.shape
    assert (tokenizer.channels, tokenizer.downscale, tokenizer.scale) == (4, 8, SCALE)


def test_a_posterior_is_sampled_with_its_mean_and_deviation():
    tokenizer = KlTokenizer(small_autoencoder(), scale=2.0)
    moments = torch.cat((torch.full((20_000, 4, 1, 1), 3.0), torch.full((20_000, 4, 1, 1), math.log(0.25))), dim=1)
    latents = tokenizer.latents(moments, torch.Generator().manual_seed(0))
    assert latents.mean().item() == pytest.approx(2 * 3.0, abs=0.02)
    assert latents.std().item() == pytest.approx(2 * 0.5, abs=0.01)
    assert torch.equal(tokenizer.latents(moments), torch.full_like(latents, 6.0))


def test_moments_are_clamped_and_give_the_same_latents():
    tokenizer = KlTokenizer(small_autoencoder())
    images = 50 * torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokenizer.autoencoder.quant_conv.bias[4:] = torch.tensor([-1e3, 1e3, 0, 0])
        moments = tokenizer.moments(images)
    assert moments.shape == (2, 8, 2, 2)
    assert moments[:, 4:].min() == -30
    assert moments[:, 4:].max() == 20
    seeds = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    assert torch.equal(tokenizer.encode(images, seeds[0]), tokenizer.latents(moments, seeds[1]))


def test_frozen_and_differentiable_both_ways():
    tokenizer = KlTokenizer(small_autoencoder()).train()
    images, latents = torch.randn(1, 3, 16, 16, requires_grad=True), torch.randn(1, 4, 2, 2, requires_grad=True)
    (tokenizer.encode(images).square().sum() + tokenizer.decode(latents).square().sum()).backward()
    assert images.grad.abs().sum() > 0
    assert latents.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not [name for name, module in tokenizer.named_modules() if module.training]


def test_bfloat16_weights_give_float32_results(folder):
    exact, half = load_tokenizer("sd_kl", folder), load_tokenizer("sd_kl", folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    images = torch.randn(1, 3, 16, 16)
    for method, x in (("encode", images), ("decode", exact.encode(images))):
        expected, given = getattr(exact, method)(x), getattr(half, method)(x)
        assert given.dtype == torch.float32
        assert 0 < (given - expected).norm() / expected.norm() < 0.1


def test_the_scale_is_that_of_the_configuration_unless_given(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert load_tokenizer("sd_kl", folder).scale == 0.5
    assert load_tokenizer("sd_kl", folder, scale=SCALE).scale == SCALE
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        load_tokenizer("sd_kl", folder, scale=0)


def test_latents_are_shifted_then_scaled_and_back():
    autoencoder = small_autoencoder(shift_factor=0.3)
    tokenizer, plain = KlTokenizer(autoencoder, scale=2.0), KlTokenizer(small_autoencoder(), scale=1.0, shift=0.0)
    assert (tokenizer.shift, KlTokenizer(autoencoder, shift=-1.0).shift, plain.shift) == (0.3, -1.0, 0.0)
    images = torch.randn(2, 3, 16, 16)
    z = plain.encode(images, torch.Generator().manual_seed(0))
    latents = tokenizer.encode(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents, 2 * (z - 0.3))
    torch.testing.assert_close(tokenizer.encode(images), 2 * (plain.encode(images) - 0.3))
    torch.testing.assert_close(tokenizer.decode(latents), plain.decode(z), rtol=1e-4, atol=1e-4)
    assert torch.equal(tokenizer.moments(images), plain.moments(images))  # a store holds them as they are
    with pytest.raises(ValueError, match="shift must be finite, got nan"):
        KlTokenizer(small_autoencoder(), shift=math.nan)


def test_the_identity_is_that_of_the_weights(folder):
    tokenizer = load_tokenizer("small_kl", folder, dtype=torch.bfloat16)
    assert (tokenizer.identity.kind, tokenizer.identity.path) == ("small_kl", str(folder))
    assert tokenizer.identity.sha256 == KlTokenizer(small_autoencoder()).identity.sha256
    other = small_autoencoder()
    other.decoder.conv_out.bias.data[0] += 1
    assert KlTokenizer(other).identity.sha256 != tokenizer.identity.sha256


def test_a_section_builds_its_tokenizer(folder):
    section = TokenizerSection(kind="small_kl", path=str(folder), scale=0.5, shift=0.25, dtype="bfloat16")
    tokenizer = section.build()
    assert (tokenizer.scale, tokenizer.shift) == (0.5, 0.25)
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.bfloat16}
    assert isinstance(TokenizerSection().build(), PixelTokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "vq"}, r"tokenizer\.kind must be one of sd_kl, small_kl, taef2, none, got 'vq'"),
        ({"dtype": "half"}, r"tokenizer\.dtype must be one of float32, bfloat16, float16"),
        ({"scale": 0.0}, r"tokenizer\.scale must be positive"),
        ({"shift": math.inf}, r"tokenizer\.shift must be finite"),
    ],
)
def test_sections_refuse_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenizerSection(**settings)


def test_missing_weights_are_listed_with_what_gets_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", _empty_cache)
    assert missing_tokenizer(TokenizerSection()) == []
    assert missing_tokenizer(TokenizerSection(kind="sd_kl", path=str(folder))) == []
    [absent] = missing_tokenizer(TokenizerSection(kind="sd_kl"))
    assert absent.setting == "tokenizer.path"
    assert absent.command == f"hf download {SD_VAE} config.json diffusion_pytorch_model.safetensors"
    [own] = missing_tokenizer(TokenizerSection(kind="small_kl", path=str(tmp_path / "no")))
    assert own.command.startswith("python -m domains.imagenet.train_tokenizer")
    [tiny] = missing_tokenizer(TokenizerSection(kind="taef2", path=str(folder)), setting="vae")
    assert (tiny.setting, tiny.what) == ("vae.path", f"{folder} has no file taef2_encoder.pth, taef2_decoder.pth")
    (folder / "config.json").unlink()
    [torn] = missing_tokenizer(TokenizerSection(kind="sd_kl", path=str(folder)))
    assert "has no file config.json" in torn.what


def _empty_cache(*_, local_files_only: bool, **__):
    assert local_files_only, "nothing may be downloaded"
    raise LocalEntryNotFoundError("the cache is empty")


def test_pixels_are_their_own_latents():
    tokenizer = load_tokenizer("none")
    images = torch.randn(2, 3, 5, 5)
    assert isinstance(tokenizer, PixelTokenizer)
    assert (tokenizer.channels, tokenizer.downscale) == (3, 1)
    assert torch.equal(tokenizer.decode(tokenizer.encode(images, torch.Generator())), images)


def test_old_names_of_the_attention_weights_are_read(folder):
    """The published Stable Diffusion autoencoders have them."""
    path = folder / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, value in load_file(path).items():
        for new_name, old_name in names.items():
            key = key.replace(new_name, old_name)
        old[key] = value
    assert any(".proj_attn." in key for key in old)
    save_file(old, path)
    given, expected = load_tokenizer("sd_kl", folder).state_dict(), KlTokenizer(small_autoencoder()).state_dict()
    assert all(torch.equal(given[name], value) for name, value in expected.items())


@pytest.mark.parametrize("damage", ["missing", "shape", "torn"])
def test_weights_that_do_not_fit_are_refused(folder, damage):
    """The library itself only warns of missing weights, and leaves them random."""
    path, name = folder / "diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"
    weights = load_file(path)
    if damage == "missing":
        weights["renamed"] = weights.pop(name)
    elif damage == "shape":
        weights[name] = weights[name][:4].contiguous()
    save_file(weights, path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"does not hold the network that its config\.json describes") as caught:
        load_tokenizer("sd_kl", folder)
    assert str(folder) in str(caught.value)
    if damage == "missing":
        assert "lacks decoder.conv_in.weight and has unknown renamed" in str(caught.value)


def test_another_network_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(WeightsError, match="must hold an AutoencoderKL of diffusers or a SmallKl, got AutoencoderTiny"):
        load_tokenizer("sd_kl", folder)
    with pytest.raises(ValueError, match="one scale and shift for all channels, got one with latents_mean"):
        KlTokenizer(small_autoencoder(latents_mean=[0.1, 0.2, 0.3, 0.4]))


def test_what_is_not_there_names_the_setting(tmp_path):
    with pytest.raises(WeightsError, match=rf"tokenizer\.path='{tmp_path}/no' is no existing folder"):
        load_tokenizer("sd_kl", tmp_path / "no")
    with pytest.raises(
        WeightsError, match=r"tokenizer\.path=.* has no file config\.json, diffusion_pytorch_model\.safetensors"
    ):
        load_tokenizer("sd_kl", tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.kind must be one of sd_kl, small_kl, taef2, none, got 'sd'"):
        load_tokenizer("sd")


def test_shapes_are_checked():
    tokenizer = KlTokenizer(small_autoencoder())
    with pytest.raises(
        ValueError, match=r"images must be \[K, 3, H, W\], sides divisible by 8, got shape \(1, 3, 12, 16\)"
    ):
        tokenizer.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match=r"latents must be \[K, 4, H, W\], got shape \(1, 3, 2, 2\)"):
        tokenizer.decode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"moments must be \[K, 8, H, W\], got shape \(1, 4, 2, 2\)"):
        tokenizer.latents(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"images must be \[K, 3, H, W\], got shape \(1, 1, 2, 2\)"):
        PixelTokenizer().encode(torch.zeros(1, 1, 2, 2))
