"""Every experiment composes into a typed configuration; what a command line means; what is refused."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from domains.robotics.config import (
    CONFIGS,
    BatchConfig,
    DiffusionConfig,
    EvalConfig,
    HeldOutConfig,
    ImageConfig,
    MlpConfig,
    PolicyConfig,
    RoboticsConfig,
    TransformerConfig,
    UnetConfig,
)
from domains.robotics.default_experiment import with_experiment
from domains.robotics.policy_kinds import build_policy
from drifting.training.config import typed
from drifting.training.errors import ConfigError

TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))


def configured(*overrides):
    ConfigStore.instance().store(name="robotics_schema", node=RoboticsConfig)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return typed(compose("robotics", overrides=list(overrides)), RoboticsConfig)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cuda", [True, False])
def test_every_task_has_settings_with_and_without_a_gpu(task, cuda):
    config = configured(*with_experiment([f"task={task}"], cuda=cuda))
    assert config.task.name == task
    assert config.run.name == task
    assert config.checkpoint.keep >= config.eval.checkpoints == 10
    assert config.run.steps // config.checkpoint.every >= 10
    if config.task.images:
        assert config.policy.image.crop <= min(config.task.images.values())
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build_policy(config).net.parameters())
    assert size > 50e6 if cuda else size < 5e6


@pytest.mark.parametrize("task", [task for task in TASKS if task.endswith("_image")])
def test_a_task_seen_by_cameras_is_shown_as_without(task):
    seen, plain = (configured(f"task={name}").task for name in (task, task.removesuffix("_image")))
    same = ("simulator", "environment", "action_dim", "max_steps", "control_hz", "demo_noise", "demo_noise_steps")
    assert [getattr(seen, fact) for fact in same] == [getattr(plain, fact) for fact in same]


def test_the_command_line_wins_over_the_experiment():
    config = configured("experiment=push_t_cpu", "run.steps=7", "policy.net=transformer")
    assert (config.task.name, config.run.steps, config.policy.net) == ("push_t", 7, "transformer")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], ["experiment=lift_cpu"]),
        (["task=push_t", "run.steps=3"], ["task=push_t", "run.steps=3", "experiment=push_t_cpu"]),
        (["task=push_t", "experiment=push_t"], ["task=push_t", "experiment=push_t"]),
        (["task=my_own"], ["task=my_own"]),
    ],
)
def test_a_task_alone_means_its_experiment_for_this_machine(given, meant):
    assert with_experiment(given, cuda=False) == meant


def test_a_task_without_an_experiment_trains_with_the_defaults():
    config = configured("task=push_t")
    assert (config.run.name, config.policy.net) == ("push_t", "unet")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.kind=flow", r"policy\.kind must be drifting or diffusion"),
        ("policy.horizon=10", r"policy\.horizon must be a multiple of 4"),
        ("policy.action_steps=16", r"policy\.action_steps must be at most"),
        ("drift.num_generated=1", r"drift\.num_generated must be at least 2"),
        ("drift.rows=window", r"drift\.rows must be chunk or timestep"),
        ("policy.unet.down_dims=[30,64]", r"down_dims must be multiples of"),
        ("policy.wing=3", "wing"),
        ("batch.size=many", "many"),
    ],
)
def test_nonsense_is_refused_by_name(override, message):
    with pytest.raises(Exception, match=message):
        configured("task=push_t", override)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (PolicyConfig, {"net": "rnn"}),
        (PolicyConfig, {"noise_dim": -1}),
        (PolicyConfig, {"octaves": -1}),
        (PolicyConfig, {"octaves": 17}),
        (UnetConfig, {"kernel_size": 4}),
        (UnetConfig, {"activation": "relu"}),
        (TransformerConfig, {"width": 30}),
        (MlpConfig, {"depth": 0}),
        (ImageConfig, {"crop": -1}),
        (DiffusionConfig, {"sampler": "euler"}),
        (DiffusionConfig, {"inference_steps": 101}),
        (BatchConfig, {"size": 0}),
        (HeldOutConfig, {"samples": 1}),
        (EvalConfig, {"checkpoints": 0}),
    ],
)
def test_sections_refuse(section, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        section(**settings)


def test_errors_are_one_line():
    with pytest.raises(ConfigError) as raised:
        typed({"run": {"name": "x", "steps": 1}, "task": {"name": "x"}}, RoboticsConfig)
    assert "\n" not in str(raised.value)
