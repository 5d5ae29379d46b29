"""ResNet features against the maps of torchvision's own forward pass, and every layout of published weights."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from small_networks import randomized, small_resnet
from torch import nn

from domains.imagenet.encoders import ResNetFeatures
from domains.imagenet.encoders.resnet_features import every_second_and_last_block
from domains.imagenet.encoders.resnet_weights import load_resnet_weights
from domains.imagenet.hub import WeightsError
from drifting.features import pooled_statistics

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def test_the_papers_nine_maps():
    names = every_second_and_last_block([3, 4, 6, 3])
    assert names == (
        "layer1_blk2", "layer1_blk3", "layer2_blk2", "layer2_blk4", "layer3_blk2", "layer3_blk4", "layer3_blk6",
        "layer4_blk2", "layer4_blk3",
    )  # fmt: skip


def test_every_map_is_that_of_the_networks_own_forward_pass():
    network = small_resnet(layers=(1, 2, 3, 1))
    samples = 2 * torch.randn(2, 3, 64, 64)  # beyond [-1, 1]: nothing is clipped
    seen = ((samples + 1) / 2 - MEAN) / STD
    maps = {}

    def note(name):
        return lambda module, inputs, output: maps.__setitem__(name, output.clone())

    hooks = [
        block.register_forward_hook(note(f"layer{s}_blk{b}"))
        for s in (1, 2, 3, 4)
        for b, block in enumerate(getattr(network, f"layer{s}"), start=1)
    ]
    with torch.no_grad():
        network(seen)
    for hook in hooks:
        hook.remove()

    features = ResNetFeatures(network, size=None)(samples)
    chosen = ["layer1_blk1", "layer2_blk2", "layer3_blk2", "layer3_blk3", "layer4_blk1"]
    expected = {
        f"{name}_{statistic}" if statistic else name: vectors
        for name in chosen
        for statistic, vectors in pooled_statistics(maps[name]).items()
    }
    expected["norm_x"] = (seen.square().mean((2, 3)) + 1e-6).sqrt()[:, None]
    assert list(features) == list(expected)
    for key, value in features.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4, msg=key)


def test_resnet_50_at_256_has_64_keys_and_18115_vectors():
    """Counted from shapes alone: on the meta device nothing is computed."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        features = ResNetFeatures(resnet50(weights=None))(torch.empty(1, 3, 256, 256))
    assert len(features) == 9 * 7 + 1
    assert sum(value.shape[1] for value in features.values()) == 18115
    assert {key: tuple(features[key].shape[1:]) for key in ("layer1_blk2", "layer4_blk3", "layer4_blk3_std_4")} == {
        "layer1_blk2": (4096, 256), "layer4_blk3": (64, 2048), "layer4_blk3_std_4": (4, 2048),
    }  # fmt: skip


def test_images_are_resized_to_256_unless_told_otherwise():
    network = small_resnet(layers=(1, 1, 1, 1))
    samples = torch.randn(1, 3, 64, 64)
    assert ResNetFeatures(network)(samples)["layer1_blk1"].shape[1] == 64**2
    assert ResNetFeatures(network, size=None)(samples)["layer1_blk1"].shape[1] == 16**2
    with pytest.raises(ValueError, match="patch size 4 does not divide the 14 x 14"):
        ResNetFeatures(network, size=224)(samples)


def test_images_of_networks_that_were_trained_on_zero_to_one():
    samples = 2 * torch.rand(1, 3, 32, 32) - 1
    encoder = ResNetFeatures(small_resnet(), maps=(), size=None, mean=(0, 0, 0), std=(1, 1, 1))
    rms = ((samples + 1) / 2).square().mean((2, 3)).sqrt()
    torch.testing.assert_close(encoder(samples)["norm_x"][:, 0], rms, rtol=1e-4, atol=0)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"maps must be among .* got \['layer1_blk2'\]"):
        ResNetFeatures(small_resnet(), maps=("layer1_blk2",))
    with pytest.raises(ValueError, match="choose at least one feature"):
        ResNetFeatures(small_resnet(), maps=(), input_norm=False)
    with pytest.raises(ValueError, match="std positive"):
        ResNetFeatures(small_resnet(), std=(1, 0, 1))


def moco(state):
    """As MoCo's training script stores it: query and key encoder with a projection head each, queue, optimiser."""
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    head = {"fc.0.weight": torch.ones(8, 8), "fc.0.bias": torch.ones(8), "fc.2.weight": torch.ones(4, 8),
            "fc.2.bias": torch.ones(4)}  # fmt: skip
    query = {f"module.encoder_q.{name}": value for name, value in (body | head).items()}
    key = {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in (body | head).items()}
    queue = {"module.queue": torch.ones(4, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict()
    return {"epoch": 800, "arch": "resnet50", "state_dict": query | key | queue, "optimizer": optimizer}


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def prefixed(state):
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}}


LAYOUTS = {
    "moco": (moco, "model.pth.tar"),
    "torchvision": (lambda state: state, "resnet.pth"),
    "simclr": (lambda state: {"state_dict": without_counters(state)}, "resnet50-1x.pth"),
    "data parallel": (prefixed, "checkpoint.pt"),
    "safetensors": (None, "model.safetensors"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["file", "folder", "named"])
def test_every_layout_gives_the_same_weights(tmp_path, layout, how):
    source = small_resnet()
    convert, name = LAYOUTS[layout]
    if convert is None:
        save_file(source.state_dict(), tmp_path / name)
    else:
        torch.save(convert(source.state_dict()), tmp_path / name)
    if how == "named":
        (tmp_path / "other.pt").write_bytes(b"")
    path = tmp_path / name if how == "file" else tmp_path
    network = load_resnet_weights(
        randomized(small_resnet(), seed=1), path, file=name if how == "named" else None
    ).state_dict()
    for key, value in source.state_dict().items():
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked"):
            assert torch.equal(network[key], value), key


def test_from_pretrained_is_a_resnet_50(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    source = resnet50(weights=None)
    torch.save(moco(source.state_dict()), tmp_path / "moco_v2_800ep_pretrain.pth.tar")
    encoder = ResNetFeatures.from_pretrained(tmp_path, maps=("layer4_blk3",), dtype=torch.bfloat16)
    assert encoder.maps == ("layer4_blk3",)
    assert torch.equal(encoder.network.layer3[5].conv2.weight, source.layer3[5].conv2.weight.bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.1.bn1.running_mean"), r"it lacks layer2\.1\.bn1\.running_mean$"),
        (lambda s: s.update({"layer9.weight": torch.ones(1)}), r"it has unknown layer9\.weight$"),
        (
            lambda s: s.update({"layer1.0.bn2.bias": torch.ones(3)}),
            r"it has other shapes: layer1\.0\.bn2\.bias \(3,\) for \(64,\)$",
        ),
        (lambda s: s.pop("conv1.weight"), r"must hold a ResNet by torchvision's names, with .*; it has bn1\.weight"),
        (lambda s: s.update({"epoch": 3}), r"holds what is no weight of the encoder \*: epoch"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    state = dict(small_resnet().state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=message) as caught:
        load_resnet_weights(small_resnet(), tmp_path / "weights.pt")
    assert str(tmp_path / "weights.pt") in str(caught.value)


def test_foreign_parts_of_a_moco_file_are_not_dropped_silently(tmp_path):
    content = moco(small_resnet().state_dict())
    content["state_dict"]["module.predictor.weight"] = torch.ones(1)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(
        WeightsError, match=r"no weight of the encoder module\.encoder_q\.\*: module\.predictor\.weight"
    ):
        load_resnet_weights(small_resnet(), tmp_path)


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_a_pickled_object_is_never_executed(tmp_path):
    torch.save({"state_dict": small_resnet().state_dict(), "x": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="holds more than tensors and primitives, and is not read"):
        load_resnet_weights(small_resnet(), tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match=r"evil\.pt"):
        load_resnet_weights(small_resnet(), tmp_path)
    assert not Payload.ran


def test_files_that_are_not_to_be_had(tmp_path):
    with pytest.raises(WeightsError, match=r"resnet=.* has no file \*\.safetensors or \*\.pth\.tar or"):
        load_resnet_weights(small_resnet(), tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"several files of weights, choose one by file=: a\.pth, b\.pth"):
        load_resnet_weights(small_resnet(), tmp_path)
    with pytest.raises(WeightsError, match=r"a\.pth cannot be read|a\.pth holds more"):
        load_resnet_weights(small_resnet(), tmp_path, file="a.pth")
    with pytest.raises(WeightsError, match="is a file already"):
        load_resnet_weights(small_resnet(), tmp_path / "a.pth", file="a.pth")
    with pytest.raises(WeightsError, match="no existing folder"):
        load_resnet_weights(small_resnet(), tmp_path / "c.pth")
    torch.save(torch.ones(2), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="must hold a state dict, got Tensor"):
        load_resnet_weights(small_resnet(), tmp_path, file="a.pth")


def test_batch_statistics_are_the_stored_ones():
    """The features of a sample do not depend on what else is in the batch."""
    encoder = ResNetFeatures(small_resnet(), size=None).train()
    assert isinstance(encoder.network.bn1, nn.BatchNorm2d)
    samples = torch.randn(3, 3, 32, 32)
    alone, together = encoder(samples[:1]), encoder(samples)
    for key, value in alone.items():
        torch.testing.assert_close(together[key][:1], value, rtol=1e-4, atol=1e-4)
