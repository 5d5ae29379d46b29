"""`python -m domains.imagenet.convert`: the authors' artefacts to ours and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flax_parameters import stored_parameters
from golden_networks import channels_first, load_arrays, style_of
from small_networks import randomized

from domains.imagenet import convert
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.convert import ConvertConfig, read_network
from domains.imagenet.encoders.section import EncoderSection, build_encoder
from domains.imagenet.flax_msgpack import flatten, read_tree, write_tree
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.hub import WeightsError
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.mae_training import MaeTrainingConfig, load_mae
from domains.imagenet.sampling import load_generator
from drifting.training.checkpoint import Checkpoint
from drifting.training.config import typed
from drifting.training.ema import Ema
from drifting.training.errors import ConfigError, TrainingError
from drifting.training.run_dir import open_run

GOLDEN = Path(__file__).parent.parent / "golden"
REPOSITORY = Path(__file__).parents[2]
MAE = MaeConfig(channels=2, base_channels=32, blocks=(1, 1, 1, 1), num_classes=5)
run = convert.main.__wrapped__


def write_theirs(folder: Path, tensors, config, kind="gen", **more) -> Path:
    folder.mkdir(parents=True)
    write_tree(folder / "ema_params.msgpack", tensors)
    metadata = {"kind": kind, "backend": "jax", "model_id": folder.name, "model_config": config, **more}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def their_mae(tmp_path):
    """A small auto-encoder as the authors would publish it."""
    mae = randomized(MaskedAutoencoder(MAE))
    mae.save_pretrained(tmp_path / "first")
    run(ConvertConfig(source=str(tmp_path / "first"), out=str(tmp_path / "mae"), to="flax"))
    return mae, tmp_path / "mae"


@pytest.fixture
def golden(tmp_path):
    """The authors' generator in their files."""
    arrays = load_arrays(GOLDEN / "official_gen_latent.npz")
    config = json.loads(str(arrays["config"]))
    source = {"step_loaded": 30000, "ema_selected": "0.999"}
    return arrays, write_theirs(tmp_path / "latent", stored_parameters(arrays), config, source=source)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder, change):
    path = folder / "ema_params.msgpack"
    tensors = flatten(read_tree(path), path)
    change(tensors)
    write_tree(path, tensors)


def same_parameters(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", ["latent", "pixel", "plain", "lnqk"])
def test_a_converted_generator_returns_the_authors_samples(tmp_path, case):
    arrays = load_arrays(GOLDEN / f"official_gen_{case}.npz")
    source = write_theirs(tmp_path / case, stored_parameters(arrays), json.loads(str(arrays["config"])))
    run(ConvertConfig(source=str(source), out=str(tmp_path / "ours")))
    net = DiTGenerator.from_pretrained(tmp_path / "ours")
    labels, alpha = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["cfg"])
    samples = net(channels_first(arrays["x"]), labels, alpha, style_of(arrays, "noise_labels", net))
    torch.testing.assert_close(samples, channels_first(arrays["samples"]), rtol=2e-5, atol=2e-6)

    run(ConvertConfig(source=str(tmp_path / "ours"), out=str(tmp_path / "back"), to="flax"))
    before, after = (flatten(read_tree(f / "ema_params.msgpack"), f) for f in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    theirs, back = (json.loads((f / "metadata.json").read_text()) for f in (source, tmp_path / "back"))
    told = {name: value for name, value in theirs["model_config"].items() if name not in ("use_bf16", "noise_coords")}
    assert told.items() <= back["model_config"].items()


def test_the_origin_goes_along(golden, tmp_path, capsys):
    _, source = golden
    run(ConvertConfig(source=str(source), out=str(tmp_path / "ours")))
    origin = json.loads((tmp_path / "ours" / "config.json").read_text())["source"]
    assert origin["source"] == {"step_loaded": 30000, "ema_selected": "0.999"}
    assert (origin["model_id"], origin["converted_from"]) == ("latent", str(source))
    assert "generator of 0.2 M parameters" in capsys.readouterr().out


def test_an_auto_encoder_there_and_back(their_mae, tmp_path):
    mae, theirs = their_mae
    run(ConvertConfig(source=str(theirs), out=str(tmp_path / "ours")))
    assert same_parameters(MaskedAutoencoder.from_pretrained(tmp_path / "ours"), mae)
    tensors = flatten(read_tree(theirs / "ema_params.msgpack"), theirs)
    assert tensors["encoder/stages_1/layers_0/proj_conv/kernel"].shape == (1, 1, 32, 64)
    assert torch.equal(
        tensors["decoder/up21/proj/conv/kernel"], mae.decoder.ups[2].project[0].weight.permute(2, 3, 1, 0)
    )


def test_the_head_is_as_wide_as_the_weights_say(their_mae, tmp_path):
    _, theirs = their_mae
    edit(theirs / "metadata.json", lambda c: c["model_config"].pop("num_classes"))
    assert read_network(theirs)[0].cfg == MAE
    rewrite(theirs, lambda tensors: [tensors.pop(f"fc/{name}") for name in ("kernel", "bias")])
    assert read_network(theirs)[0].head is None


def test_the_encoder_alone_in_half_the_bytes(their_mae, tmp_path):
    mae, theirs = their_mae
    options = {"encoder_only": True, "dtype": "bfloat16"}
    run(ConvertConfig(source=str(theirs), out=str(tmp_path / "one"), **options))
    run(ConvertConfig(source=str(tmp_path / "first"), out=str(tmp_path / "two"), **options))
    one, two = (MaskedAutoencoder.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert same_parameters(one, two)
    assert one.decoder is None
    assert torch.equal(one.encoder.stem.weight, mae.encoder.stem.weight.bfloat16())
    with pytest.raises(WeightsError, match=r"whole auto-encoders, this folder has the encoder only"):
        run(ConvertConfig(source=str(tmp_path / "one"), out=str(tmp_path / "three"), to="flax"))


def test_keys_around_the_parameters_and_a_whole_checkpoint(golden, tmp_path):
    arrays, source = golden
    expected = read_network(source)[0]
    inner = stored_parameters(arrays)
    for wrapped in (
        {f"params/{name}": value for name, value in inner.items()},
        {"step": torch.tensor(3)}
        | {f"ema_params/params/{name}": value for name, value in inner.items()}
        | {f"params/{name}": torch.zeros_like(value) for name, value in inner.items()},
    ):
        write_tree(source / "ema_params.msgpack", wrapped)
        assert same_parameters(read_network(source)[0], expected)
    (tmp_path / "run").mkdir()
    source.rename(tmp_path / "run" / "params_ema")  # the folder of a training run
    run(ConvertConfig(source=str(tmp_path / "run"), out=str(tmp_path / "ours")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(kind="vae"), r"metadata\.json must have kind gen or mae .* got kind 'vae'"),
        (lambda c: c.pop("model_config"), r"metadata\.json must have kind gen or mae and a model_config"),
        (lambda c: c["model_config"].update(use_moe=True), r"model_config: unknown fields use_moe: this is another"),
        (lambda c: c["model_config"].pop("depth"), r"model_config: fields depth are missing"),
        (lambda c: c["model_config"].update(out_channels=8), r"out_channels must equal in_channels = 4, got 8"),
        (lambda c: c["model_config"].update(depth=3), r"lacks \d+ parameters: blocks\.2\.modulation"),
        (lambda c: c["model_config"].update(depth="x"), r"model_config: depth"),
        (lambda c: c["model_config"].update(num_heads=7), r"generator\.hidden must be a multiple of 2 \* heads"),
        (lambda c: c["model_config"].update(use_swiglu=False), r"belong to another network: .*SwiGLUFFN_0"),
        (lambda c: c["model_config"].update(input_size=32), r"position must be \(256, 64\), got \(64, 64\)"),
        (
            lambda c: c["model_config"].update(noise_coords=2),
            r"must hold noise_embeds_0/.* got the numbers \[0, 1, 2\]",
        ),
    ],
)
def test_metadata_of_another_network(golden, change, message):
    _, source = golden
    edit(source / "metadata.json", change)
    with pytest.raises(WeightsError, match=message) as caught:
        read_network(source)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("LightningDiT_0/cls_embed"), r"lacks 1 parameters: context_embed"),
        (lambda t: t.update(extra=torch.zeros(2)), r"1 parameters belong to another network: extra"),
        (
            lambda t: t.update({"Embed_0/embedding": torch.zeros(2, 64)}),
            r"classes\.weight must be \(10, 64\), got \(2, 64\)",
        ),
        (lambda t: t.update({"Embed_0/embedding": torch.zeros(10, 64).long()}), r"floating-point numbers"),
    ],
)
def test_parameters_of_another_network(golden, change, message):
    _, source = golden
    rewrite(source, change)
    with pytest.raises(WeightsError, match=rf"ema_params\.msgpack.*{message}"):
        read_network(source)


def checkpoint_of(config, network, step: int = 3) -> Path:
    """A run directory with one checkpoint of two different averages of a network."""
    run_dir = open_run(config.run, config)
    ema = Ema(network, config.ema.decays)
    ema.update(randomized(network))
    Checkpoint(run_dir, ema=ema).save(step)
    return run_dir


def test_an_average_of_a_run_becomes_published_weights(tmp_path):
    settings = {"run": {"name": "gen", "steps": 3, "root": str(tmp_path)}, "ema": {"decays": [0.9, 0.5]}}
    shape = {"channels": 1, "size": 8, "patch": 4, "hidden": 16, "depth": 1, "heads": 2, "num_classes": 10}
    config = typed(settings | {"generator": {"dit": shape}}, ImagenetConfig)
    run_dir = checkpoint_of(config, DiTGenerator(config.generator.dit))
    for decay, given in ((0.9, None), (0.5, 0.5)):
        out = tmp_path / f"out{decay}"
        run(ConvertConfig(source=str(run_dir), out=str(out), decay=given))
        assert same_parameters(DiTGenerator.from_pretrained(out), load_generator(run_dir, decay)[1])
        told = {"model_id": "gen", "step": 3, "ema_decay": decay, "converted_from": str(run_dir)}
        assert json.loads((out / "config.json").read_text())["source"] == told
    assert not same_parameters(*(DiTGenerator.from_pretrained(tmp_path / f"out{decay}") for decay in (0.9, 0.5)))
    run(ConvertConfig(source=str(run_dir), out=str(tmp_path / "flax"), to="flax"))
    assert same_parameters(read_network(tmp_path / "flax")[0], load_generator(run_dir)[1])
    with pytest.raises(ConfigError, match=r"decay must be one of the run's ema\.decays=\[0\.9, 0\.5\], got 0\.7"):
        read_network(run_dir, decay=0.7)
    with pytest.raises(WeightsError, match=r"encoder_only is for masked auto-encoders, source=.*gen holds a generator"):
        read_network(run_dir, encoder_only=True)
    with pytest.raises(WeightsError, match=r"decay is for the averages of a run directory, source=.*out0\.9 is none"):
        read_network(tmp_path / "out0.9", decay=0.9)
    mlp = typed(settings | {"run": {"name": "mlp", "steps": 1, "root": str(tmp_path)}}, ImagenetConfig)
    mlp.generator.kind = "mlp"
    with pytest.raises(WeightsError, match="holds a generator of kind mlp; only those of dit have a format"):
        read_network(checkpoint_of(mlp, mlp.generator.build()))


def test_an_auto_encoder_of_a_run_becomes_weights_for_encoder_path(tmp_path):
    settings = {"run": {"name": "mae", "steps": 3, "root": str(tmp_path)}, "ema": {"decays": [0.9, 0.5]}}
    config = typed(settings, MaeTrainingConfig)
    config.mae = MaeConfig(channels=2, base_channels=8, blocks=(1, 1), max_groups=2, num_classes=5)
    run_dir = checkpoint_of(config, MaskedAutoencoder(config.mae))
    run(ConvertConfig(source=str(run_dir), out=str(tmp_path / "whole"), decay=0.5))
    assert same_parameters(MaskedAutoencoder.from_pretrained(tmp_path / "whole"), load_mae(run_dir, 0.5))
    run(ConvertConfig(source=str(run_dir), out=str(tmp_path / "encoder"), encoder_only=True))
    section = EncoderSection(kind="mae", path=str(tmp_path / "encoder"))
    images = torch.randn(1, 2, 8, 8)
    ours, theirs = (
        build_encoder(each, (2, 8, 8))(images) for each in (section, EncoderSection(kind="mae", run=str(run_dir)))
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert MaskedAutoencoder.from_pretrained(tmp_path / "encoder").decoder is None
    config.run.name = "half"
    with pytest.raises(TrainingError, match=r"source=.*half stopped at step 2 of 3"):
        read_network(checkpoint_of(config, MaskedAutoencoder(config.mae), step=2))


def test_options_that_make_no_sense(golden, their_mae, tmp_path):
    _, source = golden
    with pytest.raises(WeightsError, match=r"encoder_only is for masked auto-encoders, .* holds a generator"):
        read_network(source, encoder_only=True)
    with pytest.raises(WeightsError, match=r"out=.* must be a new or empty folder"):
        run(ConvertConfig(source=str(source), out=str(source)))
    with pytest.raises(
        WeightsError, match=r"must hold ema_params\.msgpack and metadata\.json, or config\.json; it holds"
    ):
        run(ConvertConfig(source=str(tmp_path), out=str(tmp_path / "out")))
    with pytest.raises(WeightsError, match=r"is no folder or file, nor owner/repository/name"):
        run(ConvertConfig(source="some/thing", out=str(tmp_path / "out")))
    clamped = GeneratorConfig(size=4, hidden=8, depth=1, heads=2, output_range=(0.0, 1.0))
    DiTGenerator(clamped).save_pretrained(tmp_path / "clamped")
    with pytest.raises(WeightsError, match=r"no output_range, this one has \(0\.0, 1\.0\)"):
        run(ConvertConfig(source=str(tmp_path / "clamped"), out=str(tmp_path / "out"), to="flax"))
    assert not (tmp_path / "out").exists()
    for wrong in ({"to": "onnx"}, {"dtype": "int8"}, {"source": ""}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be"):
            ConvertConfig(**{"source": "a", "out": "b"} | wrong)


def test_an_artefact_of_the_hub_is_asked_for_by_name(golden, tmp_path, monkeypatch):
    _, source = golden
    snapshot = tmp_path / "snapshot"
    (snapshot / "models" / "gen" / "jax").mkdir(parents=True)
    source.rename(snapshot / "models" / "gen" / "jax" / "latent_B_sota")
    asked = []

    def local_folder(name, *, files, revision, setting):
        asked.append((name, tuple(files), revision))
        return snapshot

    monkeypatch.setattr(convert, "local_folder", local_folder)
    run(ConvertConfig(source="Goodeat/drifting/latent_B_sota", out=str(tmp_path / "ours"), revision="v1"))
    pattern = "models/*/jax/latent_B_sota"
    assert asked == [("Goodeat/drifting", (f"{pattern}/metadata.json", f"{pattern}/ema_params.msgpack"), "v1")]
    assert DiTGenerator.from_pretrained(tmp_path / "ours").cfg.hidden == 64

    # what `hf download --local-dir` leaves: one network is found, of several the user chooses
    run(ConvertConfig(source=str(snapshot), out=str(tmp_path / "again")))
    (snapshot / "checkpoints" / "latent_ablation_ot").mkdir(parents=True)
    (snapshot / "checkpoints" / "latent_ablation_ot" / "state_00030000.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"several networks; choose one of .*state_00030000\.pt, .*latent_B_sota"):
        run(ConvertConfig(source=str(snapshot), out=str(tmp_path / "other")))


def test_the_command_line(golden, tmp_path):
    _, source = golden
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    command = [sys.executable, "-m", "domains.imagenet.convert", f"source={source}", "out=ours"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"latent", "ours"}  # no hydra litter
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"config.json", "model.safetensors"}
