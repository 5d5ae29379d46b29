"""The tables of names: complete and invertible for every released network.

The figures of the authors' artefacts (numbers of parameters, names, shapes) are those of the published files.
"""

import dataclasses

import pytest
import torch

from domains.imagenet.flax_names import generator_names, mae_names
from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset
from domains.imagenet.hub import WeightsError
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.parameter_names import ParameterNames, Rule
from domains.imagenet.wflow import wflow_names

SMALL = GeneratorConfig(size=4, hidden=8, depth=2, heads=2, num_classes=3, context_tokens=2, style_tokens=3)
LATENT_MAE = MaeConfig(num_classes=1000)
PIXEL_MAE = MaeConfig(channels=3, base_channels=640, space_to_depth=8, num_classes=1000)


def generator_case(cfg, table=generator_names):
    return DiTGenerator.skeleton(cfg, "generator"), table(cfg)


def mae_case(cfg):
    return MaskedAutoencoder.skeleton(cfg, "mae"), mae_names(len(cfg.blocks))


NETWORKS = {
    **{name: generator_case(generator_preset(name)) for name in ("B/2", "L/2", "B/16", "L/16")},
    **{
        f"mae {width}": mae_case(dataclasses.replace(LATENT_MAE, base_channels=width)) for width in (256, 384, 512, 640)
    },
    "mae pixel 640": mae_case(PIXEL_MAE),
    "mae without head": mae_case(dataclasses.replace(LATENT_MAE, num_classes=0)),
    "plain generator": generator_case(
        dataclasses.replace(SMALL, rms_norm=False, swiglu=False, qk_norm=False, context_tokens=0, style_tokens=0)
    ),
    "layer norms": generator_case(dataclasses.replace(SMALL, rms_norm=False)),
    **{f"W-Flow {name}": generator_case(generator_preset(name), wflow_names) for name in ("B/2", "L/2", "XL/2")},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_has_one_name_and_returns_from_it(name):
    network, names = NETWORKS[name]
    ours = network.state_dict()
    theirs = names.to_theirs(ours, "x")
    parts = [rule.parts for rule in names.rules if rule.parts]
    assert len(theirs) == len(ours) + sum(parts) - len(parts)
    back = names.to_ours(dict(theirs), "x")
    assert {n: w.shape for n, w in back.items()} == {n: w.shape for n, w in ours.items()}
    for templates in ([rule.theirs for rule in names.rules], [rule.ours for rule in names.rules]):
        assert len(set(templates)) == len(templates)


@pytest.mark.parametrize(
    ("name", "parameters", "some"),
    [
        (
            "B/2",
            132_708_880,
            {
                "Embed_0/embedding": (1000, 768),
                "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0/kernel": (768, 16),
                "LightningDiT_0/blocks_11/Attention_0/TorchLinear_0/Dense_0/kernel": (768, 2304),
                "LightningDiT_0/blocks_11/Attention_0/q_norm/weight": (64,),
                "LightningDiT_0/blocks_0/SwiGLUFFN_0/TorchLinear_2/Dense_0/kernel": (2048, 768),
                "LightningDiT_0/blocks_0/TorchLinear_0/Dense_0/kernel": (768, 4608),
                "noise_embeds_31/embedding": (64, 768),
            },
        ),
        (
            "mae 256",
            431_354_348,
            {
                "encoder/stages_1/layers_0/proj_conv/kernel": (1, 1, 256, 512),
                "encoder/stages_3/layers_2/gn2/scale": (2048,),
                "encoder/layer4_norm/bias": (2048,),
                "decoder/up43/proj/conv/kernel": (3, 3, 3072, 1024),
                "decoder/up10/concat_norm_fn/scale": (512,),
                "decoder/head/kernel": (1, 1, 256, 4),
                "fc/kernel": (2048, 1000),
            },
        ),
    ],
)
def test_the_published_trees(name, parameters, some):
    network, names = NETWORKS[name]
    theirs = names.to_theirs(network.state_dict(), "x")
    assert sum(w.numel() for w in theirs.values()) == parameters
    assert {key: tuple(theirs[key].shape) for key in some} == some


@pytest.mark.parametrize("name", ["plain generator", "layer norms"])
def test_values_survive_and_the_tensors_are_taken_over_one_by_one(name):
    cfg = NETWORKS[name][0].cfg
    network, names = DiTGenerator(cfg), generator_names(cfg)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    ours = network.state_dict()
    theirs = names.to_theirs(ours, "x")
    back = names.to_ours(theirs, "x")
    assert theirs == {}
    assert all(torch.equal(back[key], value) and back[key].is_contiguous() for key, value in ours.items())


def test_a_square_matrix_is_turned_too():
    names = generator_names(SMALL)
    square = torch.arange(64.0).reshape(8, 8)
    [(key, turned)] = names.to_theirs({"blocks.1.attention.out.weight": square}, "x").items()
    assert key == "LightningDiT_0/blocks_1/Attention_0/TorchLinear_1/Dense_0/kernel"
    assert torch.equal(turned, square.T)


def test_style_tables_are_row_blocks_in_numerical_order():
    cfg = dataclasses.replace(SMALL, style_tokens=12, style_codes=2)
    names = generator_names(cfg)
    tables = {f"noise_embeds_{i}/embedding": torch.full((2, 8), float(i)) for i in reversed(range(12))}
    table = names.to_ours(dict(tables), "x")["conditioning.style.weight"]
    assert table[:, 0].tolist() == [i for i in range(12) for _ in range(2)]
    back = names.to_theirs({"conditioning.style.weight": table}, "x")
    assert all(torch.equal(back[key], value) for key, value in tables.items())


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"Dense_7/kernel": (2, 2), "x": (1,)}, r"file: 2 parameters belong to another network: Dense_7/kernel, x"),
        ({"LightningDiT_0/blocks_01/RMSNorm_0/weight": (8,)}, r"blocks_01"),
        ({"LightningDiT_0/pos_embed": (2, 4, 8)}, r"pos_embed must be \(1, tokens, width\), got shape \(2, 4, 8\)"),
        ({"LightningDiT_0/TorchLinear_0/Dense_0/kernel": (8,)}, r"kernel must be \(in, out\), got shape \(8,\)"),
        ({f"noise_embeds_{i}/embedding": (4, 8) for i in (0, 2)}, r"noise_embeds_0/.* \.\. noise_embeds_2/.*\[0, 2\]"),
        ({f"noise_embeds_{i}/embedding": (4 + i, 8) for i in range(3)}, r"one shape for all numbers"),
    ],
)
def test_foreign_names_and_layouts_are_named(theirs, message):
    with pytest.raises(WeightsError, match=message):
        generator_names(SMALL).to_ours({name: torch.zeros(shape) for name, shape in theirs.items()}, "file")


def test_unknown_names_of_ours_are_named():
    with pytest.raises(WeightsError, match=r"1 parameters belong to another network: b"):
        ParameterNames([Rule("x", "a")]).to_theirs({"a": torch.zeros(1), "b": torch.zeros(1)}, "net")
