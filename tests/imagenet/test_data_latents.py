"""The store of latents: scale and shift, orientations, what is drawn of a posterior; and the encoder that fills it."""

import numpy as np
import pytest
import torch
from image_files import write_images
from small_networks import randomized, small_autoencoder

from domains.imagenet import encode_latents
from domains.imagenet.data.image_data import DataError, to_float
from domains.imagenet.data.image_folder import ImageFolder
from domains.imagenet.data.latent_store import LatentStore, half_precision, latent_samples, missing_latent_store
from domains.imagenet.data.store_writer import StorePlan, StoreWriter
from domains.imagenet.encode_latents import EncodeLatentsConfig, Encoder
from domains.imagenet.tokenizers import KlTokenizer, PixelTokenizer, TinyTokenizer, TokenizerSection
from domains.imagenet.tokenizers.taef2 import taef2_network
from drifting.training.errors import ConfigError

N, C, SIDE = 10, 4, 6
SCALE, SHIFT = 0.5, 0.25
IMAGE = 3


def write_latents(path, stored: np.ndarray, **changes):
    attributes = {"classes": ["a", "b"], "scale": SCALE, "shift": SHIFT, "posterior": True, "scaled": False} | changes
    labels = np.arange(len(stored)) % 2
    plan = StorePlan("moments", stored.shape[1:], "float16", labels, attributes, "python -m again", chunk=4)
    writer = StoreWriter(path, plan)
    for number in writer.pending():
        rows = writer.chunk_rows(number)
        writer.write(number, stored[rows.start : rows.stop])
    assert writer.finish()
    return path


@pytest.fixture(scope="module")
def moments() -> torch.Tensor:
    """[N, 2, 2 C, h, w], float32 numbers that half precision holds."""
    drawn = torch.randn(N, 2, 2 * C, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return drawn.half().float()


@pytest.fixture(scope="module")
def path(moments, tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("stores") / "latents.zarr", half_precision(moments))


def expected_mean(moments, index, orientation=0):
    return SCALE * (moments[index, orientation, :C] - SHIFT)


def test_without_a_generator_it_is_the_scaled_mean_as_it_is(path, moments):
    for posterior in ("sampled", "frozen", "mean"):
        store = LatentStore(path, posterior=posterior)
        assert store.sample_shape == (C, SIDE, SIDE)
        assert store.dtype == torch.float32
        assert store.classes == ("a", "b")
        indices = torch.tensor([9, 0, 3, 9])
        read = store.read(indices)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, expected_mean(moments, indices))


def test_another_tokenizer_than_that_of_the_store_is_refused(moments, tmp_path):
    tokenizer = KlTokenizer(small_autoencoder(), scale=SCALE, shift=SHIFT)
    made = {"kind": "small_kl", "path": "runs/tokenizer", "sha256": tokenizer.identity.sha256, "dtype": "float32"}
    store = LatentStore(write_latents(tmp_path / "latents.zarr", half_precision(moments), tokenizer=made))
    store.refuse_other(tokenizer)
    with pytest.raises(ConfigError, match=r"tokenizer.scale must be 0.5, that of .*latents.zarr, got 0.6"):
        store.refuse_other(KlTokenizer(small_autoencoder(), scale=0.6, shift=SHIFT))
    with pytest.raises(ConfigError, match=r"has other weights than those that made .*: small_kl of runs/tokenizer"):
        store.refuse_other(KlTokenizer(randomized(small_autoencoder(), seed=1), scale=SCALE, shift=SHIFT))
    with pytest.raises(ConfigError, match=r"tokenizer.kind must be the one that made .*, got none"):
        store.refuse_other(PixelTokenizer())
    LatentStore(write_latents(tmp_path / "unsaid.zarr", half_precision(moments), tokenizer=None)).refuse_other(
        tokenizer
    )


def test_mean_draws_nothing_but_the_orientation(path, moments):
    read = LatentStore(path, posterior="mean").read(torch.full((200,), IMAGE), torch.Generator().manual_seed(0))
    plain, flipped = expected_mean(moments, IMAGE), expected_mean(moments, IMAGE, 1)
    is_plain = torch.tensor([torch.allclose(one, plain) for one in read])
    is_flipped = torch.tensor([torch.allclose(one, flipped) for one in read])
    assert (is_plain ^ is_flipped).all()
    assert 70 < int(is_flipped.sum()) < 130


def test_sampled_has_the_mean_and_deviation_of_the_posterior(path, moments):
    n = 4000
    store = LatentStore(path, posterior="sampled", flip=False)
    read = store.read(torch.full((n,), IMAGE), torch.Generator().manual_seed(0))
    deviation = SCALE * (moments[IMAGE, 0, C:] / 2).exp()
    error = (read.mean(0) - expected_mean(moments, IMAGE)) / (deviation / n**0.5)
    assert error.abs().max() < 5  # 144 standard normals
    assert abs(float(error.std()) - 1) < 0.2
    torch.testing.assert_close(read.std(0), deviation, rtol=0.07, atol=0)
    assert not torch.equal(read[0], read[1])


def test_sampled_follows_the_generator(path):
    store = LatentStore(path)
    draws = [store.read(torch.arange(N), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_frozen_is_one_sample_of_each_image_and_orientation(path, moments):
    store = LatentStore(path, posterior="frozen")
    read = store.read(torch.full((100,), IMAGE), torch.Generator().manual_seed(1))
    assert len({one.numpy().tobytes() for one in read}) == 2  # as it is, and flipped
    again = LatentStore(path, posterior="frozen").read(torch.full((50,), IMAGE), torch.Generator().manual_seed(2))
    assert {one.numpy().tobytes() for one in again} == {one.numpy().tobytes() for one in read}
    still = LatentStore(path, posterior="frozen", flip=False)
    everything = still.read(torch.arange(N), torch.Generator())
    torch.testing.assert_close(everything[[7, 2]], still.read(torch.tensor([7, 2]), torch.Generator()))  # by index
    noise = (everything / SCALE + SHIFT - moments[:, 0, :C]) / (moments[:, 0, C:] / 2).exp()
    assert abs(float(noise.mean())) < 5 / noise.numel() ** 0.5
    assert abs(float(noise.std()) - 1) < 0.1
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(N)
    assert correlation.abs().max() < 0.4  # every image has noise of its own
    flipped = next(one for one in read if not torch.equal(one, everything[IMAGE]))
    other = (flipped / SCALE + SHIFT - moments[IMAGE, 1, :C]) / (moments[IMAGE, 1, C:] / 2).exp()
    assert abs(float(torch.corrcoef(torch.stack((other.flatten(), noise[IMAGE].flatten())))[0, 1])) < 0.4


def test_another_scale_and_shift_are_applied_to_the_same_z(path, moments):
    read = LatentStore(path, scale=2.0, shift=-1.0).read(torch.tensor([4]))
    torch.testing.assert_close(read, 2 * (moments[[4], 0, :C] + 1))


def test_a_store_without_posterior_holds_z_or_scaled_latents(moments, tmp_path):
    z = moments[:, :, :C]
    plain = write_latents(tmp_path / "z.zarr", half_precision(z), posterior=False)
    generator = torch.Generator().manual_seed(0)
    for posterior in ("sampled", "frozen", "mean"):
        store = LatentStore(plain, posterior=posterior, flip=False)
        torch.testing.assert_close(store.read(torch.arange(N), generator), SCALE * (z[:, 0] - SHIFT))
    scaled = write_latents(tmp_path / "scaled.zarr", half_precision(z), posterior=False, scaled=True)
    assert torch.equal(LatentStore(scaled).read(torch.arange(N)), z[:, 0])  # to the last bit
    other = LatentStore(scaled, scale=2.0, shift=-1.0).read(torch.arange(N))
    torch.testing.assert_close(other, 2 * (z[:, 0] / SCALE + SHIFT + 1))


def test_log_variances_are_clamped_and_means_beyond_half_precision_refused():
    moments = torch.zeros(1, 2 * C, 2, 2)
    moments[:, C:] = torch.tensor([-1e6, 50.0, 1.0, -30.0]).view(C, 1, 1)
    stored = latent_samples(moments, moments, has_posterior=True)
    assert stored.dtype == np.float16
    assert stored[0, 1, C:, 0, 0].tolist() == [-30, 20, 1, -30]
    assert latent_samples(moments, moments, has_posterior=False).shape == (1, 2, C, 2, 2)
    moments[0, 0, 0, 0] = 1e5
    with pytest.raises(DataError, match=r"half precision .* got up to 100000"):
        latent_samples(moments, moments, has_posterior=True)


def test_fingerprints_differ_by_content_and_by_how_it_is_read(path, moments, tmp_path):
    first = LatentStore(path).fingerprint
    assert first == LatentStore(path).fingerprint
    others = [
        LatentStore(path, **given).fingerprint for given in ({"flip": False}, {"scale": 1.0}, {"posterior": "mean"})
    ]
    changed = half_precision(moments)
    changed[N - 1, 1, 0, 0, 0] += 1
    others.append(LatentStore(write_latents(tmp_path / "changed.zarr", changed)).fingerprint)
    assert len({first, *others}) == 5


def test_nonsense_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="posterior must be one of sampled, frozen, mean, got 'mode'"):
        LatentStore(path, posterior="mode")
    with pytest.raises(ValueError, match="scale"):
        LatentStore(path, scale=0.0)
    with pytest.raises(DataError, match=r"must be \[N, 2, 2 c, h, w\], got \(3, 1, 4, 2, 2\)"):
        LatentStore(write_latents(tmp_path / "one.zarr", np.zeros((3, 1, 4, 2, 2), np.float16)))
    [missing] = missing_latent_store(str(tmp_path / "none.zarr"), "data.path")
    assert "encode_latents" in missing.command
    assert missing_latent_store(str(path), "data.path") == []


@pytest.fixture
def tokenizer():
    return KlTokenizer(small_autoencoder(), kind="small_kl")


def encode(folder, out, **changes) -> None:
    settings = {
        "folder": str(folder),
        "out": str(out),
        "size": 32,
        "batch": 2,
        "chunk": 4,
        "workers": 1,
        "device": "cpu",
    }
    section = TokenizerSection(kind="small_kl", path=".")
    encode_latents.main.__wrapped__(EncodeLatentsConfig(**settings | {"tokenizer": section} | changes))


@pytest.fixture
def given_tokenizer(monkeypatch, tokenizer):
    monkeypatch.setattr(TokenizerSection, "build", lambda section: tokenizer)
    monkeypatch.setattr(encode_latents, "missing_tokenizer", lambda section: [])
    return tokenizer


def test_the_command_stores_the_tokenizers_moments_of_both_orientations(given_tokenizer, tmp_path, capsys):
    root = write_images(tmp_path / "images", {"a": 4, "b": 3}, sides=(40, 36))
    encode(root, tmp_path / "out.zarr")
    assert "7 images encoded now, 7 of 2 classes in all" in capsys.readouterr().out
    pixels = to_float(ImageFolder(root, size=32).read(torch.arange(7)))
    store = LatentStore(tmp_path / "out.zarr", flip=False)
    stored = torch.from_numpy(store.store.read(np.arange(7))).float()
    with torch.no_grad():
        for orientation, images in enumerate((pixels, pixels.flip(-1))):
            expected = given_tokenizer.moments(images)
            torch.testing.assert_close(stored[:, orientation], expected, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(store.read(torch.arange(7)), given_tokenizer.encode(pixels), rtol=2e-3, atol=2e-3)
    attributes = store.store.attributes
    assert attributes["tokenizer"]["sha256"] == given_tokenizer.identity.sha256
    assert attributes["scale"] == given_tokenizer.scale
    encode(root, tmp_path / "out.zarr")
    assert "0 images encoded now" in capsys.readouterr().out


def test_another_tokenizer_does_not_go_on_with_the_store(monkeypatch, given_tokenizer, tmp_path):
    root = write_images(tmp_path / "images", {"a": 3}, sides=(32, 32))
    encode(root, tmp_path / "out.zarr")
    other = KlTokenizer(randomized(small_autoencoder(), seed=1), kind="small_kl")
    monkeypatch.setattr(TokenizerSection, "build", lambda section: other)
    with pytest.raises(DataError, match="was begun with tokenizer"):
        encode(root, tmp_path / "out.zarr")


def test_a_tokenizer_without_posterior_is_stored_without_one(tmp_path):
    tokenizer = TinyTokenizer(taef2_network())
    encoder = Encoder(tokenizer, torch.device("cpu"))
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stored = encoder(images)
    assert stored.shape[1:] == encoder.stored_shape(16) == (2, 32, 2, 2)
    attributes = {"classes": ["a", "b"], **encoder.attributes("float32")}
    path = write_latents(tmp_path / "tiny.zarr", stored, **attributes)
    with torch.no_grad():
        expected = tokenizer.encode(to_float(images))
    torch.testing.assert_close(LatentStore(path).read(torch.arange(2)), expected, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_encoded_is_refused_first(given_tokenizer, tmp_path):
    root = write_images(tmp_path / "images", {"a": 2}, sides=(32, 32))
    with pytest.raises(ConfigError, match=r"size must be divisible by 8 .* got 30"):
        encode(root, tmp_path / "out.zarr", size=30)
    with pytest.raises(ConfigError, match="folder: no folder"):
        encode(tmp_path / "nothing", tmp_path / "out.zarr")
    with pytest.raises(ValueError, match=r"tokenizer.kind must be .*pack_images"):
        encode(root, tmp_path / "out.zarr", tokenizer=TokenizerSection(kind="none"))
    assert not (tmp_path / "out.zarr").exists()
