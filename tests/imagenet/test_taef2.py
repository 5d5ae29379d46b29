"""TAEF2: its file names onto a network, and its quality on photographs where its weights are at hand."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_networks import randomized
from torch.nn.functional import conv2d, group_norm, relu

from domains.imagenet.hub import WeightsError
from domains.imagenet.tokenizers import TinyTokenizer, load_tokenizer
from domains.imagenet.tokenizers.taef2 import BranchedBlock, taef2_network

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"


def file_names(half: str) -> list[str]:
    """Of the published file, written out from its own listing: blocks, convolutions between them, both ends."""
    blocks = {"encoder": [1, 3, 4, 5, 7, 8, 9, 11, 12, 13], "decoder": [3, 4, 5, 8, 9, 10, 13, 14, 15, 18]}[half]
    branched = {"encoder": (11, 12, 13), "decoder": (3, 4, 5)}[half]
    strided = {"encoder": (2, 6, 10), "decoder": (7, 12, 17)}[half]
    first, last = {"encoder": (0, 14), "decoder": (1, 19)}[half]
    names = [f"{end}.{kind}" for end in (first, last) for kind in ("weight", "bias")]
    names += [f"{block}.conv.{i}.{kind}" for block in blocks for i in (0, 2, 4) for kind in ("weight", "bias")]
    names += [f"{layer}.weight" for layer in strided]
    return names + [f"{b}.pool.{n}" for b in branched for n in ("0.weight", "1.weight", "1.bias", "3.weight")]


@pytest.fixture
def files(tmp_path):
    """A folder in the published layout with random weights, and the network that they belong to."""
    network = randomized(taef2_network())
    for half, shift in (("encoder", 0), ("decoder", 1)):
        state = {}
        for name, value in getattr(network, half).layers.state_dict().items():
            number, rest = name.split(".", 1)
            state[f"{int(number) + shift}.{rest}"] = value
        assert sorted(state) == sorted(file_names(half))
        torch.save(state, tmp_path / f"taef2_{half}.pth")
    return tmp_path, network


def test_every_weight_lands_in_its_place(files):
    folder, network = files
    tokenizer = load_tokenizer("taef2", folder)
    given, expected = tokenizer.autoencoder.state_dict(), network.state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())
    assert sum(value.numel() for value in expected.values()) == pytest.approx(2 * 1.34e6, rel=0.01)
    assert (tokenizer.channels, tokenizer.downscale, tokenizer.identity.kind) == (32, 8, "taef2")


def test_a_branched_block_by_hand():
    block = randomized(BranchedBlock(taef2_network().encoder.layers[11].conv))
    x = torch.randn(2, 64, 4, 4)
    weights = block.state_dict()
    inner = group_norm(conv2d(x, weights["pool.0.weight"]), 4, weights["pool.1.weight"], weights["pool.1.bias"])
    y = x + conv2d(relu(inner), weights["pool.3.weight"])
    torch.testing.assert_close(block(x), relu(block.conv(y) + y))


def test_its_posterior_is_a_point():
    tokenizer = TinyTokenizer(randomized(taef2_network()), scale=2.0, shift=0.5)
    images = torch.randn(1, 3, 16, 24)
    moments = tokenizer.moments(images)
    assert moments.shape == (1, 64, 2, 3)
    mean = tokenizer.encode(images)
    torch.testing.assert_close(mean, 2 * (moments[:, :32] - 0.5))
    torch.testing.assert_close(tokenizer.encode(images, torch.Generator().manual_seed(0)), mean, rtol=0, atol=1e-5)
    assert tokenizer.decode(mean).shape == images.shape


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "odd", "torn", "object"])
def test_other_files_are_refused(files, damage):
    folder, _ = files
    path = folder / "taef2_decoder.pth"
    state = torch.load(path, weights_only=True)
    expected = {
        "missing": r"lacks 1 parameters: decoder\.layers\.18\.bias",
        "unknown": r"holds 1 parameters too many: decoder\.layers\.19\.weight",
        "shape": r"decoder\.layers\.18\.bias must be \(3,\), got \(2,\)",
        "odd": r"must name its weights by layer number, got model\.weight",
        "torn": "cannot be read",
        "object": "holds more than tensors and primitives, and is not read",
    }[damage]
    if damage == "missing":
        del state["19.bias"]
    elif damage == "unknown":
        state["20.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["19.bias"] = state["19.bias"][:2].clone()
    elif damage == "odd":
        state["model.weight"] = torch.zeros(1)
    torch.save({**state, "code": Path("x")} if damage == "object" else state, path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=expected):
        load_tokenizer("taef2", folder)


@pytest.mark.skipif(not (PUBLISHED / "taef2").exists(), reason="../shared/data/taef2 is not on this machine")
def test_published_weights_reconstruct_a_photograph():
    from sklearn.datasets import load_sample_image

    tokenizer = load_tokenizer("taef2", PUBLISHED / "taef2")
    photograph = Image.fromarray(load_sample_image("flower.jpg")).crop((100, 0, 527, 427))
    photograph = photograph.resize((256, 256), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(photograph.tobytes()), dtype=torch.uint8).view(256, 256, 3)
    images = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = tokenizer.encode(images)
        error = (tokenizer.decode(latents).clamp(-1, 1) - images).square().mean()
    assert float(10 * torch.log10(4 / error)) > 30  # 28.6 with twice the groups in its norms
    assert 0.6 < float(latents.std()) < 1.1
