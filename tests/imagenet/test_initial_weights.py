"""A run that starts from the weights of another one, or from published ones."""

import pytest
import torch

from domains.imagenet import train
from domains.imagenet.config import ImagenetConfig
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.initial_weights import missing_init, start_from
from domains.imagenet.sampling import load_generator
from drifting.training.config import typed
from drifting.training.errors import ConfigError

SMALL_DIT = {"channels": 1, "size": 8, "patch": 4, "hidden": 16, "depth": 1, "heads": 2, "num_classes": 10}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(train, "report", lambda *_, **__: None)


def config(root, name: str, init: str = "", **drift) -> ImagenetConfig:
    settings = {
        "run": {"name": name, "steps": 3, "root": str(root)},
        "generator": {"kind": "mlp", "mlp": {"hidden": 32}, "init": init},
        "encoder": {"kind": "pixels"},
        "drift": {"classes_per_step": 4, "num_generated": 8, "num_positive": 8, "floor": 0.0} | drift,
        "queue": {"per_class": 20, "unconditional": 50},
        "optim": {"lr": 1e-2, "warmup_steps": 0},
        "ema": {"decays": [0.5]},
    }
    return typed(settings, ImagenetConfig)


def parameters(generator) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in generator.parameters()])


def test_a_run_starts_from_the_average_of_another(tmp_path):
    train.main.__wrapped__(config(tmp_path, "first"))
    first = parameters(load_generator(tmp_path / "first")[1])
    second = config(tmp_path, "second", init=str(tmp_path / "first"), field="kernel_gradient")
    second.optim.lr = second.optim.warmup_lr = 1e-12
    train.main.__wrapped__(second)
    torch.testing.assert_close(parameters(load_generator(tmp_path / "second")[1]), first, rtol=0, atol=1e-9)
    third = config(tmp_path, "third", init=str(tmp_path / "first"))
    train.main.__wrapped__(third)
    assert (parameters(load_generator(tmp_path / "third")[1]) - first).abs().max() > 1e-3


def test_published_weights_are_taken_and_another_network_is_refused(tmp_path):
    torch.manual_seed(0)
    published = DiTGenerator(GeneratorConfig(**SMALL_DIT))
    published.save_pretrained(tmp_path / "weights")
    fresh = DiTGenerator(GeneratorConfig(**SMALL_DIT, checkpoint_blocks=True))
    start_from(str(tmp_path / "weights"), fresh)
    assert torch.equal(parameters(fresh), parameters(published))
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    other = DiTGenerator(GeneratorConfig(**SMALL_DIT | {"heads": 4}))  # of the same shapes
    before = parameters(other)
    with pytest.raises(ConfigError, match=r"generator\.init=.* holds another network"):
        start_from(str(tmp_path / "weights"), other)
    assert torch.equal(parameters(other), before)


def test_what_is_not_there_is_listed_before_anything_starts(tmp_path):
    assert missing_init("") == []
    with pytest.raises(ConfigError, match=r"generator.init: '.*nowhere' is no existing folder"):
        train.main.__wrapped__(config(tmp_path, "second", init=str(tmp_path / "nowhere")))
    assert not (tmp_path / "second").exists()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "resolved.yaml").touch()
    assert "has no checkpoint yet" in missing_init(str(tmp_path / "begun"))[0].what
