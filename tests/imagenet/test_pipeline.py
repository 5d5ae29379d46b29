"""The diffusers pipeline: the generator's own numbers, and saving, loading, precision as any pipeline has them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.pipeline import DriftingPipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_generator(channels: int = 4, **settings) -> DiTGenerator:
    shape = {"size": 8, "patch": 2, "hidden": 32, "depth": 2, "heads": 2, "num_classes": 10, "context_tokens": 2}
    generator = DiTGenerator(
        GeneratorConfig(channels=channels, **shape | {"style_tokens": 3, "style_codes": 5} | settings)
    )
    with torch.no_grad():  # a new one makes zeros
        for parameter in generator.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return generator


def some_vae(channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
    ).eval()


@pytest.fixture(scope="module")
def pipe() -> DriftingPipeline:
    return DriftingPipeline(some_generator(), some_vae())


def test_images_are_the_generator_decoded(pipe):
    labels, alpha, source = [3, 7], [1.0, 2.5], seeded(5)
    images = pipe(labels, alpha, seeded(5), output_type="pt").images
    noise = torch.randn(2, 4, 8, 8, generator=source)
    style = torch.randint(5, (2, 3), generator=source)
    with torch.no_grad():
        latents = some_generator()(noise, torch.tensor(labels), torch.tensor(alpha), style)
        decoded = some_vae().decode(latents / 0.18215).sample
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(pipe(labels, alpha, seeded(5), output_type="latent").images, latents)


def test_output_types_show_the_same_image(pipe):
    tensor = pipe(1, generator=seeded(), output_type="pt").images[0]
    array = pipe(1, generator=seeded(), output_type="np").images[0]
    (picture,) = pipe([1], generator=seeded()).images
    (again,) = pipe(1, generator=seeded(), return_dict=False)[0]
    np.testing.assert_array_equal(array, tensor.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(picture), (array * 255).round().astype("uint8"))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(again))


def test_with_one_source_per_image_it_depends_on_its_own_alone(pipe):
    both = pipe([1, 2], 1.5, [seeded(8), seeded(9)], output_type="latent").images
    alone = pipe([2], 1.5, [seeded(9)], output_type="latent").images
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[1], pipe([2], 1.5, [seeded(10)], output_type="latent").images[0])


@pytest.mark.parametrize("latent", [True, False])
def test_a_saved_pipeline_draws_the_same(latent, tmp_path):
    pipe = DriftingPipeline(some_generator(4 if latent else 3), some_vae() if latent else None)
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = DriftingPipeline.from_pretrained(tmp_path)
    assert (loaded.vae is not None) == latent
    ours, theirs = (p([4], 1.5, seeded(), output_type="pt").images for p in (pipe, loaded))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # Its parts are ordinary folders.
    network = DiTGenerator.from_pretrained(tmp_path / "transformer")
    for name, value in some_generator(4 if latent else 3).state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DriftingPipeline"


def test_half_precision_draws_nearly_the_same_image(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = DriftingPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
    ours, theirs = (p([4], 1.5, seeded(), output_type="pt").images for p in (pipe, half))
    assert theirs.dtype == torch.float32
    assert 0 < (ours - theirs).abs().max() < 0.05
    moved = DriftingPipeline(some_generator(), some_vae()).to(torch.bfloat16)
    torch.testing.assert_close(moved([4], 1.5, seeded(), output_type="pt").images, theirs, rtol=0, atol=0.02)


def test_the_pipeline_shares_the_parameters_that_it_was_given():
    generator = some_generator(3)
    pipe = DriftingPipeline(generator)
    before = pipe(1, generator=seeded(), output_type="pt").images
    with torch.no_grad():
        generator.final.linear.bias.add_(1)
    assert not torch.equal(pipe(1, generator=seeded(), output_type="pt").images, before)


def test_grey_images_need_no_decoder_and_have_no_style():
    (picture,) = DriftingPipeline(some_generator(1, style_tokens=0))([1], generator=[seeded()]).images
    assert picture.mode == "L" and picture.size == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [3, 10]}, r"class_labels must be one or more of 0\.\.9, got \[3, 10\]"),
        ({"class_labels": []}, "class_labels must be one or more"),
        ({"class_labels": -1}, r"class_labels must be one or more of 0\.\.9, got -1"),
        ({"class_labels": 1, "guidance_scale": 0.9}, r"guidance_scale must be finite and >= 1 .* got 0\.9"),
        ({"class_labels": 1, "guidance_scale": float("nan")}, "guidance_scale must be finite"),
        ({"class_labels": [1, 2], "guidance_scale": [1.0]}, r"one for each of 2 labels, got \[1\.0\]"),
        (
            {"class_labels": [1, 2], "generator": [seeded()]},
            "generator must be one, or one for each of 2 labels, got 1",
        ),
        ({"class_labels": 1, "output_type": "jpg"}, "output_type must be one of pil, np, pt, latent, got 'jpg'"),
    ],
)
def test_wrong_arguments_are_named(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_latents_need_a_decoder_of_such_latents():
    with pytest.raises(ValueError, match=r"latents of 4 x 8 x 8: pass the vae that decodes them"):
        DriftingPipeline(some_generator())
    with pytest.raises(ValueError, match="vae decodes 5 channels, transformer makes 4"):
        DriftingPipeline(some_generator(), some_vae(5))


def test_the_readme_example_runs(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(pipe = .*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    some_generator(num_classes=1000).save_pretrained("weights/B2")
    some_vae().save_pretrained("sd-vae-ft-mse")
    scope = {each.__name__: each for each in (AutoencoderKL, DiTGenerator, DriftingPipeline)}
    exec(example, scope)
    assert [image.size for image in scope["images"]] == [(16, 16)] * 2
    assert DriftingPipeline.from_pretrained("folder").vae is not None


def test_a_device_map_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"device_map=.* does not apply to OneStepTransformer; use pipe.to"):
        type(pipe.transformer).from_pretrained(tmp_path / "transformer", device_map="auto")
