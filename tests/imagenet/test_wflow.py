"""Checkpoints of W-Flow. Names and shapes are those of their PyTorch checkpoints; the values are random."""

import pytest
import torch
from safetensors.torch import load_file

from domains.imagenet import wflow
from domains.imagenet.convert import ConvertConfig, main
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.hub import WeightsError
from domains.imagenet.wflow import read_wflow

SMALL = GeneratorConfig(size=4, hidden=8, depth=2, heads=2, num_classes=3, context_tokens=2, style_tokens=3)
HIDDEN = 32  # of the SwiGLU: 2/3 * 4 * 8, rounded up
SHAPES = {
    "class_embed.weight": (3, 8),
    **{f"noise_embeds.{i}.weight": (64, 8) for i in range(3)},
    "cfg_embedder.fc1.linear.weight": (8, 256),
    "cfg_embedder.fc1.linear.bias": (8,),
    "cfg_embedder.fc2.linear.weight": (8, 8),
    "cfg_embedder.fc2.linear.bias": (8,),
    "cfg_norm.weight": (8,),
    "model.pos_embed": (1, 4, 8),
    "model.cls_embed": (1, 2, 8),
    "model.patch_embed.linear.weight": (8, 16),
    "model.patch_embed.linear.bias": (8,),
    "model.c_token_proj.linear.weight": (8, 8),
    "model.c_token_proj.linear.bias": (8,),
    "model.final_layer.norm_final.weight": (8,),
    "model.final_layer.adaLN_mod.1.linear.weight": (16, 8),
    "model.final_layer.adaLN_mod.1.linear.bias": (16,),
    "model.final_layer.linear.linear.weight": (16, 8),
    "model.final_layer.linear.linear.bias": (16,),
}
for b in range(2):
    block = f"model.blocks.{b}"
    SHAPES |= {f"{block}.norm{i}.weight": (8,) for i in (1, 2)}
    SHAPES |= {f"{block}.attn.{n}_norm.weight": (4,) for n in "qk"}
    for name, outputs, inputs in (
        ("attn.qkv", 24, 8),
        ("attn.proj", 8, 8),
        ("mlp.w1", HIDDEN, 8),
        ("mlp.w3", HIDDEN, 8),
        ("mlp.w2", 8, HIDDEN),
        ("adaLN_mod.1", 48, 8),
    ):
        SHAPES |= {f"{block}.{name}.linear.weight": (outputs, inputs), f"{block}.{name}.linear.bias": (outputs,)}


@pytest.fixture(autouse=True)
def small_release(monkeypatch):
    monkeypatch.setattr(wflow, "PRESETS", ("tiny",))
    monkeypatch.setattr(wflow, "generator_preset", lambda _: SMALL)


@pytest.fixture
def state():
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


@pytest.fixture
def checkpoint(tmp_path, state):
    def write(**changes):
        path = tmp_path / "state_00200000.pt"
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]}
        raw = {name: torch.zeros_like(value) for name, value in state.items()}
        content = {"step": 200000, "model": raw, "ema_model": state, "optimizer": optimizer, "ema_decay": 0.999}
        torch.save({name: value for name, value in (content | changes).items() if value is not ...}, path)
        return path

    return write


def test_the_averaged_weights_are_taken(checkpoint, state):
    read = read_wflow(checkpoint())
    ours = read.network.state_dict()
    assert read.step == 200000
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in state.values())
    for name, theirs in (
        ("blocks.1.mlp.value.weight", "model.blocks.1.mlp.w3.linear.weight"),
        ("blocks.0.mlp.out.weight", "model.blocks.0.mlp.w2.linear.weight"),
        ("blocks.1.attention.out.weight", "model.blocks.1.attn.proj.linear.weight"),
        ("conditioning.alpha_out.weight", "cfg_embedder.fc2.linear.weight"),
        ("final.linear.bias", "model.final_layer.linear.linear.bias"),
    ):
        assert torch.equal(ours[name], state[theirs]), name
    assert torch.equal(ours["position"], state["model.pos_embed"][0])
    assert torch.equal(ours["conditioning.style.weight"][64:128], state["noise_embeds.1.weight"])


def test_the_command_makes_a_folder_of_ours(checkpoint, state, tmp_path):
    main.__wrapped__(ConvertConfig(source=str(checkpoint()), out=str(tmp_path / "ours")))
    assert torch.equal(load_file(tmp_path / "ours/model.safetensors")["context_embed"], state["model.cls_embed"][0])
    assert DiTGenerator.from_pretrained(tmp_path / "ours").cfg == SMALL
    torch.save(state, tmp_path / "ema_params.pt")  # the artefact of a training run: the averaged state alone
    assert read_wflow(tmp_path / "ema_params.pt").step is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_model": None}, r"must hold averaged weights under 'ema_model'.* got the keys step, model"),
        ({"ema_model": ...}, r"must hold averaged weights under 'ema_model'"),
        ({"ema_model": {"model.pos_embed": 3}}, r"must hold averaged weights"),
        ({"ema_model": {"decoder.weight": torch.zeros(2)}}, r"no generator of W-Flow: .* but decoder\.weight"),
    ],
)
def test_other_contents_are_named(checkpoint, changes, message):
    with pytest.raises(WeightsError, match=rf"state_00200000\.pt .*{message}"):
        read_wflow(checkpoint(**changes))


def test_other_networks_are_named(checkpoint, state):
    wide = state | {"model.pos_embed": torch.zeros(1, 4, 9)}
    with pytest.raises(WeightsError, match=r"one of W-Flow's sizes, tiny \(8 x 2\) .* got 9 x 2"):
        read_wflow(checkpoint(ema_model=wide))
    with pytest.raises(WeightsError, match=r"1 parameters belong to another network: potential\.weight"):
        read_wflow(checkpoint(ema_model=state | {"potential.weight": torch.zeros(1)}))
    fewer = {name: value for name, value in state.items() if not name.endswith("mlp.w3.linear.bias")}
    with pytest.raises(WeightsError, match=r"lacks 2 parameters: blocks\.0\.mlp\.value\.bias, blocks\.1\.mlp"):
        read_wflow(checkpoint(ema_model=fewer))
    with pytest.raises(WeightsError, match=r"classes\.weight must be \(3, 8\), got \(5, 8\)"):
        read_wflow(checkpoint(ema_model=state | {"class_embed.weight": torch.zeros(5, 8)}))


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_no_pickle_is_executed(checkpoint, tmp_path, capsys):
    path = checkpoint(optimizer=Harmful())
    with pytest.raises(WeightsError, match=r"state_00200000\.pt .*tensors and primitives, and was not loaded"):
        read_wflow(path)
    assert "executed" not in capsys.readouterr().out
    path.write_bytes(checkpoint().read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"is damaged"):
        read_wflow(path)
    with pytest.raises(WeightsError, match=r"cannot read .*nothing\.pt"):
        read_wflow(tmp_path / "nothing.pt")
