"""Networks saved as folders and loaded again."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import randomized

from domains.imagenet import hub
from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset
from domains.imagenet.hub import WeightsError
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder

CONFIG = GeneratorConfig(
    size=4, hidden=8, depth=2, heads=2, num_classes=3, context_tokens=2, style_tokens=3, output_range=(-1.0, 1.0)
)
MAE_CONFIG = MaeConfig(channels=1, base_channels=8, blocks=(1, 2), max_groups=4, num_classes=5)


@pytest.fixture
def generator() -> DiTGenerator:
    return randomized(DiTGenerator(CONFIG))


@pytest.fixture
def mae() -> MaskedAutoencoder:
    return randomized(MaskedAutoencoder(MAE_CONFIG))


@pytest.fixture
def saved(tmp_path, generator):
    folder = tmp_path / "saved"
    generator.save_pretrained(folder, source={"step": 7})
    return folder


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def same_parameters(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sample(net):
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return net(noise, torch.tensor([0, 2]), torch.tensor([1.0, 2.5]), torch.tensor([[0, 1, 2], [63, 5, 4]]))


def test_a_generator_returns_bit_for_bit_and_can_be_trained_on(generator, saved):
    loaded = DiTGenerator.from_pretrained(saved)
    assert loaded.cfg == CONFIG
    assert not loaded.training
    assert same_parameters(loaded, generator)
    assert torch.equal(sample(loaded), sample(generator))
    sample(loaded).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    content = json.loads((saved / "config.json").read_text())
    assert content["source"] == {"step": 7}
    assert content["kind"] == "generator"
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_the_file_is_left_alone_when_the_network_changes(saved):
    loaded = DiTGenerator.from_pretrained(saved)
    with torch.no_grad():
        loaded.position.add_(1)
    assert torch.equal(DiTGenerator.from_pretrained(saved).position + 1, loaded.position)
    loaded.save_pretrained(saved)  # over the file that it was loaded from
    assert same_parameters(DiTGenerator.from_pretrained(saved), loaded)


def test_a_skeleton_costs_neither_memory_nor_random_numbers():
    state = torch.get_rng_state()
    skeleton = MaskedAutoencoder.skeleton(MaeConfig(base_channels=640, num_classes=1000), "mae")
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == 2_687_866_604
    assert torch.equal(torch.get_rng_state(), state)


def test_precision_of_file_and_of_network(generator, tmp_path):
    generator.save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert generator.position.dtype == torch.float32
    assert DiTGenerator.from_pretrained(tmp_path).position.dtype == torch.bfloat16
    loaded = DiTGenerator.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded.position, generator.position.bfloat16().double())


def test_many_files_and_their_index(generator, tmp_path):
    generator.save_pretrained(tmp_path, max_shard_size=4000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert same_parameters(DiTGenerator.from_pretrained(tmp_path), generator)

    (tmp_path / shards[1]).rename(tmp_path / "aside")
    with pytest.raises(WeightsError, match=rf"cannot read .*{shards[1]}"):
        DiTGenerator.from_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / shards[1])
    with pytest.raises(
        WeightsError, match=r"index\.json and the files that it names do not agree on conditioning\..*, x$"
    ):
        DiTGenerator.from_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors.index.json", lambda c: c["weight_map"].update(x="../elsewhere.safetensors"))
    with pytest.raises(WeightsError, match=r"must map each parameter to a file of its folder"):
        DiTGenerator.from_pretrained(tmp_path)

    generator.save_pretrained(tmp_path)  # one file again: the old ones do not stay behind
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]


def test_an_auto_encoder_and_its_encoder_alone(mae, tmp_path):
    images = torch.randn(2, 1, 8, 8)
    mae.save_pretrained(tmp_path / "whole")
    whole = MaskedAutoencoder.from_pretrained(tmp_path / "whole")
    assert whole.cfg == MAE_CONFIG
    assert same_parameters(whole, mae)

    whole.encoder_alone().save_pretrained(tmp_path / "encoder")
    encoder = MaskedAutoencoder.from_pretrained(tmp_path / "encoder")
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"encoder"}
    ours, theirs = MaeFeatures(encoder)(images), MaeFeatures(mae)(images)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    with pytest.raises(ValueError, match="its encoder only"):
        encoder(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="drifting-models 9"), r"expected format 'drifting-models 1', got format"),
        (lambda c: c.pop("format"), r"no configuration of this library: .* got the keys kind, config"),
        (lambda c: c.update(kind="mae"), r"must describe a DiTGenerator \(kind generator\), got kind 'mae'"),
        (lambda c: c.update(config=[1]), r"must hold the configuration under 'config', got list"),
        (lambda c: c["config"].pop("rotary"), r"config lacks rotary"),
        (lambda c: c["config"].update(rotray=1), r"config: .*rotray"),
        (lambda c: c["config"].update(depth="two"), r"config: depth"),
        (lambda c: c["config"].update(patch=3), r"generator.patch must be a divisor of generator.size=4, got 3"),
        (
            lambda c: c["config"].update(depth=3),
            r"lacks \d+ parameters: blocks\.2\.modulation\.linear\.weight, .* more",
        ),
        (lambda c: c["config"].update(depth=1), r"parameters too many: blocks\.1\."),
        (
            lambda c: c["config"].update(num_classes=4),
            r"does not fit its configuration: conditioning\.classes\.weight must be \(4, 8\), got \(3, 8\)",
        ),
    ],
)
def test_a_configuration_that_is_not_that_of_the_weights(saved, change, message):
    edit(saved / "config.json", change)
    with pytest.raises(WeightsError, match=message) as caught:
        DiTGenerator.from_pretrained(saved)
    assert str(saved) in str(caught.value)


def test_a_preset_with_the_weights_of_another(saved):
    edit(saved / "config.json", lambda c: c.update(config=json.loads(json.dumps(vars(generator_preset("B/2"))))))
    with pytest.raises(WeightsError, match=r"lacks \d+ parameters: blocks\.2\."):
        DiTGenerator.from_pretrained(saved)


@pytest.mark.parametrize("content", ["{", "[1]", '"x"'])
def test_a_configuration_that_is_no_json_object(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json (is no JSON|must hold a JSON object)"):
        DiTGenerator.from_pretrained(saved)


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_truncated_file_of_weights(saved, kept):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated or damaged"):
        DiTGenerator.from_pretrained(saved)


def test_integers_are_no_weights(saved, generator):
    save_file({n: w.long() for n, w in generator.state_dict().items()}, saved / "model.safetensors")
    with pytest.raises(WeightsError, match=r"must hold floating-point numbers"):
        DiTGenerator.from_pretrained(saved)


def test_folders_that_hold_something_else(tmp_path, mae):
    with pytest.raises(WeightsError, match=r"encoder\.path=.* has no file config\.json"):
        DiTGenerator.from_pretrained(tmp_path, setting="encoder.path")
    mae.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"must describe a DiTGenerator"):
        DiTGenerator.from_pretrained(tmp_path)
    (tmp_path / "ema_params.msgpack").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"the authors' files: run `python -m domains\.imagenet\.convert source="):
        MaskedAutoencoder.from_pretrained(tmp_path)


def test_without_network_the_answer_is_quick_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"run `hf download someone/net .*--local-dir FOLDER`"):
        DiTGenerator.from_pretrained("someone/net")
    assert time.monotonic() - start < 2


def test_an_interrupted_save_leaves_no_network(saved, generator, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("domains.imagenet.pretrained.save_torch_state_dict", fail)
    with pytest.raises(OSError, match="disk full"):
        generator.save_pretrained(saved)
    with pytest.raises(WeightsError, match=r"has no file config\.json"):
        DiTGenerator.from_pretrained(saved)
