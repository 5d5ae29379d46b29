"""typed(): a configuration becomes dataclasses, or one line that names the key."""

import re
from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    typed,
)
from drifting.training.errors import ConfigError


@dataclass
class Root:
    run: RunConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


RUN = {"name": "a", "steps": 10}


def test_sections_become_dataclasses_with_plain_values():
    config = typed(OmegaConf.create({"run": RUN, "optim": {"betas": [0.95, 0.999], "clip_norm": None}}), Root)
    assert config.run == RunConfig(name="a", steps=10)
    assert config.optim == OptimConfig(betas=(0.95, 0.999), clip_norm=None)
    assert type(config.optim.betas) is tuple
    assert type(config.ema.decays) is list


def test_paper_defaults():
    assert (OptimConfig().betas, OptimConfig().clip_norm, OptimConfig().schedule) == ((0.9, 0.95), 2.0, "constant")
    assert (OptimConfig().eps, OptimConfig().warmup_lr, EmaConfig().decays, EmaConfig().warmup) == (
        1e-8,
        1e-6,
        [0.999],
        False,
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optim": {"learning_rate": 1}}, "optim.learning_rate: Key 'learning_rate' not in 'OptimConfig'"),
        ({"optim": {"lr": "fast"}}, "optim.lr: Value 'fast' of type 'str' could not be converted to Float"),
        ({"run": {"name": "a"}}, "run.steps: .*missing mandatory value: steps"),
        ({"run": RUN | {"steps": 1.5}}, "run.steps: Value '1.5' of type 'float' could not be converted to Integer"),
        ({"optimizer": {}}, "optimizer: Key 'optimizer' not in 'Root'"),
        ({"run": RUN | {"name": "a/../b"}}, "run.name must be one folder name .*, got 'a/../b'"),
        ({"run": RUN | {"steps": 0}}, "run.steps must be at least 1, got 0"),
        ({"run": RUN | {"seed": -1}}, "run.seed must be in .*, got -1"),
        ({"run": RUN | {"device": "gpu"}}, "run.device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"run": RUN | {"threads": 0}}, "run.threads must be at least 1, got 0"),
        ({"optim": {"lr": 0.0}}, "optim.lr must be positive and finite, got 0.0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr must be positive and finite, got nan"),
        ({"optim": {"betas": [0.9]}}, r"optim.betas must be two numbers in \[0, 1\), got \[0.9\]"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas must be two numbers"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule must be constant or cosine, got 'cosin'"),
        (
            {"optim": {"warmup_steps": 5, "warmup_lr": 1.0}},
            r"optim.warmup_lr must be in \[0, optim.lr = 0.0002\], got 1.0",
        ),
        ({"optim": {"clip_norm": 0.0}}, "optim.clip_norm must be positive and finite, or null .*, got 0.0"),
        ({"optim": {"final_ratio": 2.0}}, r"optim.final_ratio must be in \[0, 1\], got 2.0"),
        ({"ema": {"decays": []}}, "ema.decays must be one or more"),
        ({"ema": {"decays": [0.9, 1.0]}}, r"ema.decays must be one or more numbers in \[0, 1\), got \[0.9, 1.0\]"),
        ({"ema": {"decays": [0.9, 0.9]}}, "ema.decays must be distinct"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep must be at least 1, got 0"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every must be at least 1, got 0"),
        ({"parallel": {"mode": "dp"}}, "parallel.mode must be single, ddp, fsdp, hsdp, got 'dp'"),
        ({"parallel": {"mode": "hsdp", "shard": -1}}, "parallel.shard must be at least 1, or 0 for .*, got -1"),
        ({"parallel": {"mode": "ddp", "shard": 2}}, "parallel.shard must be 0 with parallel.mode=ddp .*, got 2"),
        ({"parallel": {"shard_generated": 0}}, "parallel.shard_generated must be at least 1, got 0"),
        ({"parallel": {"parts": 0}}, "parallel.parts must be at least 1, got 0"),
        ({"parallel": {"precision": "fp16"}}, "parallel.precision must be float32 or bfloat16, got 'fp16'"),
        ({"parallel": {"timeout": 0.0}}, "parallel.timeout must be positive and finite, in seconds, got 0.0"),
        ({"log": {"every": -3}}, "log.every must be at least 1, got -3"),
    ],
)
def test_mistakes_are_one_line_naming_the_key(section, message):
    with pytest.raises(ConfigError) as raised:
        typed({"run": RUN} | section, Root)
    text = str(raised.value)
    assert re.match(message, text), text
    assert "\n" not in text
