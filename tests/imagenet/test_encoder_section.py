"""The `encoder` section: every kind is built from weights on disk, and what is not there is listed before."""

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from small_networks import randomized, small_autoencoder, small_convnext

from domains.imagenet import hub
from domains.imagenet.encoders import ConvNextFeatures, DecodedFeatures, MaeFeatures
from domains.imagenet.encoders.section import EncoderSection, build_encoder, missing_encoder
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.tokenizers import KlTokenizer, PixelTokenizer
from drifting.training.config import typed
from drifting.training.errors import ConfigError, TrainingError

PIXELS, LATENTS = (3, 32, 32), (4, 4, 4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of small networks as their libraries save them; MoCo's training state of a ResNet-50."""
    from torchvision.models import resnet50

    root = tmp_path_factory.mktemp("weights")
    small_convnext().save_pretrained(root / "convnext")
    shape = MaeConfig(channels=3, base_channels=8, blocks=(2, 2), space_to_depth=4, max_groups=2)
    for name, changes in (("mae", {}), ("mae_latent", {"channels": 4, "space_to_depth": 1})):
        torch.manual_seed(0)
        config = MaeConfig(**{**vars(shape), **changes})
        MaskedAutoencoder(config).encoder_alone().save_pretrained(root / name)
    state = randomized(resnet50(weights=None)).state_dict()
    save_file({name: value for name, value in state.items() if not name.startswith("fc.")}, root / "r50.safetensors")
    return root


def section(weights, **settings) -> EncoderSection:
    convnext = {"path": str(weights / "convnext"), "size": 32}
    resnet = {"path": str(weights / "r50.safetensors"), "size": 64, "patch_sizes": [2]}
    mae = {"path": str(weights / "mae")} if "mae" in (settings["kind"], *settings.get("also", [])) else {}
    return typed(
        {"convnext": convnext, "moco": resnet, "simclr": resnet | {"normalized": False}} | mae | settings,
        EncoderSection,
    )


def samples(shape, count=2):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).mul(0.3)


def test_pixels_alone(weights):
    assert list(build_encoder(section(weights, kind="pixels"), PIXELS)(samples(PIXELS))) == ["global"]


def test_the_auto_encoder_from_published_weights(weights):
    given = build_encoder(section(weights, kind="mae", patch_sizes=[2], maps=["layer2"], input_norm=False), PIXELS)
    mae = MaskedAutoencoder.from_pretrained(weights / "mae")
    expected = MaeFeatures(mae, maps=["layer2"], patch_sizes=[2], input_norm=False)(samples(PIXELS))
    features = given(samples(PIXELS))
    assert (
        list(features)
        == list(expected)
        == ["layer2", "layer2_mean", "layer2_std", "layer2_mean_2", "layer2_std_2", "global"]
    )
    assert all(torch.equal(features[key], expected[key]) for key in expected)
    assert not any(parameter.requires_grad for parameter in given.parameters())


def test_the_released_network_has_86_keys(weights, tmp_path):
    """Names and number of keys depend on blocks and the map sizes 32, 16, 8, 4, not on the width."""
    MaskedAutoencoder(MaeConfig(base_channels=8, max_groups=2)).encoder_alone().save_pretrained(tmp_path)
    encoder = build_encoder(section(weights, kind="mae", path=str(tmp_path)), (4, 32, 32))
    with torch.no_grad():
        assert len(encoder(torch.zeros(1, 4, 32, 32))) == 86


def test_pixel_models_add_convnext(weights):
    encoder = build_encoder(section(weights, kind="mae", also=["convnext"]), PIXELS)
    features = encoder(samples(PIXELS))
    alone = build_encoder(section(weights, kind="mae"), PIXELS)(samples(PIXELS))
    convnext = build_encoder(section(weights, kind="convnext"), PIXELS)(samples(PIXELS))
    assert list(features) == [*alone, *(f"convnext_{key}" for key in convnext)]
    assert all(torch.equal(features[f"convnext_{key}"], value) for key, value in convnext.items())


def test_latents_reach_image_encoders_through_the_decoder(weights):
    tokenizer = KlTokenizer(small_autoencoder(), scale=0.5)
    encoder = build_encoder(section(weights, kind="pixels", also=["convnext"], decode_chunk=1), LATENTS, tokenizer)
    latents = samples(LATENTS).requires_grad_()
    features = encoder(latents)
    on_images = ConvNextFeatures(small_convnext(), size=32)(tokenizer.decode(latents))
    assert set(features) == {"global", *(f"convnext_{key}" for key in on_images)}
    for key, value in on_images.items():
        torch.testing.assert_close(features[f"convnext_{key}"], value, rtol=1e-4, atol=1e-4)
    features["convnext_stage1"].sum().backward()
    assert latents.grad.abs().sum() > 0
    assert isinstance(build_encoder(section(weights, kind="moco"), LATENTS, tokenizer), DecodedFeatures)


def test_moco_and_simclr_differ_in_the_input_of_their_training(weights):
    moco, simclr = (build_encoder(section(weights, kind=kind), PIXELS, PixelTokenizer()) for kind in ("moco", "simclr"))
    assert torch.equal(simclr.input.mean.flatten(), torch.zeros(3))
    assert torch.equal(simclr.input.std.flatten(), torch.ones(3))
    torch.testing.assert_close(moco.input.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert not torch.equal(moco(samples(PIXELS))["layer1_blk2"], simclr(samples(PIXELS))["layer1_blk2"])


def test_half_precision_and_recomputing_reach_the_networks_that_they_are_for(weights):
    chosen = section(weights, kind="mae", also=["convnext", "moco"], dtype="bfloat16", recompute=True)
    encoder = build_encoder(chosen, PIXELS)
    dtypes = [{parameter.dtype for parameter in part.parameters()} for part in encoder.encoders]
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.bfloat16}]  # ConvNeXt-V2 has a key of its own
    chosen.convnext.dtype = "bfloat16"
    assert {value.dtype for value in build_encoder(chosen, PIXELS).encoders[1].parameters()} == {torch.bfloat16}
    assert [part.checkpoint for part in encoder.encoders] == [True, True, True]
    assert {value.dtype for value in encoder(samples(PIXELS)).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"kind": "mae", "maps": ["layer9"]}, PIXELS, r"encoder\.maps or encoder\.patch_sizes: maps must be among"),
        ({"kind": "mae", "patch_sizes": [3]}, PIXELS, r"patch size 3 does not divide the 8 x 8 feature map"),
        ({"kind": "mae"}, LATENTS, r"images must be \[K, 3, H, W\], got \(1, 4, 4, 4\)"),
        ({"kind": "pixels", "pixel_patches": [3]}, PIXELS, r"encoder\.pixel_patches: patches of 3 x 3 do not fill"),
        ({"kind": "pixels", "pixel_patches": [0]}, PIXELS, r"encoder\.pixel_patches: patches must be at least 1"),
        ({"kind": "convnext"}, LATENTS, r"encoder convnext sees RGB images, the samples are 4 x 4 x 4"),
        ({"kind": "moco", "moco": {"path": "R50", "size": 64, "patch_sizes": [3]}}, PIXELS, r"encoder\.moco\.maps, "),
    ],
)
def test_what_does_not_fit_the_samples_is_refused(weights, settings, shape, message):
    if "moco" in settings:
        settings["moco"]["path"] = str(weights / "r50.safetensors")
    with pytest.raises(ConfigError, match=message):
        build_encoder(section(weights, **settings), shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "clip"}, r"encoder\.kind must be one of pixels, mae, convnext, moco, simclr, got 'clip'"),
        ({"kind": "mae"}, r"encoder\.run must be the run directory .* or encoder\.path"),
        ({"kind": "mae", "run": "a", "path": "b"}, r"and not both"),
        ({"kind": "pixels", "also": ["pixels"]}, r"encoder\.also must be kinds other than encoder\.kind=pixels"),
        ({"kind": "moco"}, r"encoder\.moco\.path must be a file"),
        ({"kind": "pixels", "dtype": "float16"}, r"encoder\.dtype must be one of float32, bfloat16"),
        (
            {"kind": "pixels", "convnext": {"dtype": "half"}},
            r"encoder\.convnext\.dtype must be one of float32, bfloat16",
        ),
        ({"kind": "moco", "moco": {"path": "R50"}, "pixel_patches": [4]}, r"encoder\.pixel_patches must be empty"),
        ({"kind": "pixels", "decode_chunk": 0}, r"encoder\.decode_chunk must be at least 1"),
    ],
)
def test_sections_refuse_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        typed(settings, EncoderSection)


def test_everything_missing_is_listed_with_its_command(weights, tmp_path, monkeypatch):
    def empty_cache(*_, local_files_only, **__):
        assert local_files_only, "nothing may be downloaded"
        raise LocalEntryNotFoundError("the cache is empty")

    monkeypatch.setattr(hub, "snapshot_download", empty_cache)
    assert missing_encoder(section(weights, kind="mae", also=["convnext", "moco"])) == []
    absent = {
        "kind": "mae",
        "also": ["convnext", "moco"],
        "run": str(tmp_path / "runs" / "mae"),
        "moco": {"path": "a/b"},
    }
    run, convnext, moco = missing_encoder(typed(absent, EncoderSection))
    expected = f"python -m domains.imagenet.pretrain_mae run.root={tmp_path / 'runs'} run.name=mae"
    assert (run.setting, run.command) == ("encoder.run", expected)
    [shipped] = missing_encoder(typed({"kind": "mae", "run": str(tmp_path / "mae_imagenette64")}, EncoderSection))
    assert shipped.command.endswith("run.name=mae_imagenette64 mae_experiment=imagenette64")
    assert convnext.command == "hf download facebook/convnextv2-base-22k-224 config.json model.safetensors"
    assert moco.command == "hf download a/b --include '*.safetensors'"
    published = missing_encoder(typed({"kind": "mae", "path": "Owner/mae"}, EncoderSection))
    assert [each.setting for each in published] == ["encoder.path"]
    with pytest.raises(TrainingError, match="does not exist"):
        build_encoder(typed(absent, EncoderSection), PIXELS)
