"""The sections that every domain's configuration shares, and the step from Hydra's DictConfig to typed dataclasses.

A domain declares one root dataclass out of these sections and its own:

    @dataclass
    class ToyConfig:
        run: RunConfig
        optim: OptimConfig = field(default_factory=OptimConfig)

Each section refuses nonsense in `__post_init__`, before any device is touched. Defaults are the paper's, where it has
one.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drifting.training.errors import ConfigError

Schema = TypeVar("Schema")

SCHEDULES = ("constant", "cosine")
MODES = ("single", "ddp", "fsdp", "hsdp")
PRECISIONS = ("float32", "bfloat16")
TRACKERS = ("none", "wandb", "trackio")


def require(holds: bool, key: str, expected: str, given: object) -> None:
    """Raise ValueError "`key` must be `expected`, got `given`" unless `holds`; for the `__post_init__` of a section."""
    if not holds:
        raise ValueError(f"{key} must be {expected}, got {given!r}")


def require_device(key: str, given: str) -> None:
    """ValueError unless `given` is what a device may be called; whether there is one is not looked at."""
    require(re.fullmatch(r"auto|cpu|cuda(:\d+)?", given) is not None, key, "auto, cpu, cuda or cuda:N", given)


@dataclass
class RunConfig:
    """Where a run lives, how long it is, and on what it computes. `steps`: optimiser steps; `threads`: CPU threads."""

    name: str
    steps: int
    root: str = "runs"
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", self.name) is not None
        require(named, "run.name", "one folder name of letters, digits and . _ = + -", self.name)
        require(self.root != "", "run.root", "a folder", self.root)
        require(self.steps >= 1, "run.steps", "at least 1", self.steps)
        require(0 <= self.seed < 2**32, "run.seed", "in [0, 2^32)", self.seed)
        require_device("run.device", self.device)
        require(self.threads >= 1, "run.threads", "at least 1", self.threads)


@dataclass
class ParallelConfig:
    """How the ranks of a run share its work. What is trained depends on `precision` alone; see `parallelize`.

    With bfloat16 it also depends on whether weights are gathered: "fsdp" and "hsdp" round them all for the passes, also
    those of norms and conditioning, which "ddp" leaves float32. The weights themselves stay float32 everywhere.

    `mode`: "single" one process; "ddp" a copy of the weights on every rank; "fsdp" the weights shared out over all
    ranks; "hsdp" over groups of `shard` ranks (0: the ranks of one node), with a copy in each group.
    `shard_generated` ranks share the generated samples of the same problems; `parts`: how many pieces a rank cuts its
    problems into, one in memory at a time. `precision` is that of matrix products; weights and sums stay float32.
    `timeout`: seconds after which a rank that waits for another gives up.
    """

    mode: str = "single"
    shard: int = 0
    shard_generated: int = 1
    parts: int = 1
    precision: str = "float32"
    checkpoint_activations: bool = False
    compile: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        require(self.mode in MODES, "parallel.mode", ", ".join(MODES), self.mode)
        require(self.shard >= 0, "parallel.shard", "at least 1, or 0 for the ranks of one node", self.shard)
        unused = self.mode == "hsdp" or self.shard == 0
        require(unused, "parallel.shard", f"0 with parallel.mode={self.mode} (only hsdp has groups)", self.shard)
        require(self.shard_generated >= 1, "parallel.shard_generated", "at least 1", self.shard_generated)
        require(self.parts >= 1, "parallel.parts", "at least 1", self.parts)
        require(self.precision in PRECISIONS, "parallel.precision", " or ".join(PRECISIONS), self.precision)
        require(0 < self.timeout < math.inf, "parallel.timeout", "positive and finite, in seconds", self.timeout)

    def refuse_sharing(self, why: str) -> None:
        """ConfigError where ranks shall share or cut a drifting problem, of a command that cuts its batch alone."""
        for key in ("shard_generated", "parts"):
            if getattr(self, key) != 1:
                raise ConfigError(f"parallel.{key} must be 1 {why}, got {getattr(self, key)}")


@dataclass
class OptimConfig:
    """AdamW, its learning rate over the steps, and the bound on the gradient.

    `lr` is reached after `warmup_steps` steps, linearly from `warmup_lr`; "constant" keeps it, "cosine" lowers it to
    `final_ratio * lr` at the last step. `clip_norm` bounds the global L2 norm of the gradient; null leaves it as it is.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    schedule: str = "constant"
    final_ratio: float = 0.0
    clip_norm: float | None = 2.0

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optim.lr", "positive and finite", self.lr)
        betas = tuple(self.betas)  # YAML has lists only
        valid = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(valid, "optim.betas", "two numbers in [0, 1)", list(betas))
        self.betas = cast(tuple[float, float], betas)
        require(0 < self.eps < math.inf, "optim.eps", "positive and finite", self.eps)
        require(0 <= self.weight_decay < math.inf, "optim.weight_decay", "at least 0 and finite", self.weight_decay)
        require(self.warmup_steps >= 0, "optim.warmup_steps", "at least 0", self.warmup_steps)
        starts = self.warmup_steps == 0 or 0 <= self.warmup_lr <= self.lr
        require(starts, "optim.warmup_lr", f"in [0, optim.lr = {self.lr}]", self.warmup_lr)
        require(self.schedule in SCHEDULES, "optim.schedule", " or ".join(SCHEDULES), self.schedule)
        require(0 <= self.final_ratio <= 1, "optim.final_ratio", "in [0, 1]", self.final_ratio)
        clips = self.clip_norm is None or 0 < self.clip_norm < math.inf
        require(clips, "optim.clip_norm", "positive and finite, or null for no clipping", self.clip_norm)


@dataclass
class EmaConfig:
    """Averages of the weights, one per decay; `warmup` uses min(decay, (1 + n) / (10 + n)) at update n."""

    decays: list[float] = field(default_factory=lambda: [0.999])
    warmup: bool = False

    def __post_init__(self) -> None:
        valid = len(self.decays) > 0 and all(0 <= decay < 1 for decay in self.decays)
        require(valid, "ema.decays", "one or more numbers in [0, 1)", self.decays)
        require(len(set(self.decays)) == len(self.decays), "ema.decays", "distinct", self.decays)


@dataclass
class CheckpointConfig:
    """A checkpoint every `every` steps; the last `keep` of them stay on disk."""

    every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", "at least 1", self.every)
        require(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)


@dataclass
class LogConfig:
    """What a run tells, without effect on what it trains; figures are fetched and written every `every` steps.

    `tracker`: wandb or trackio beside metrics.jsonl and TensorBoard, in `project`. `profile` writes a profiler's trace
    of a few steps. `peak_flops`: FLOP/s of one device, for MFU; null takes those of a known GPU. A rank that waits for
    data says so after `stall_warning` seconds and ends after `stall_limit`, null never.
    """

    every: int = 10
    tracker: str = "none"
    project: str = "drifting"
    profile: bool = False
    peak_flops: float | None = None
    stall_warning: float = 60.0
    stall_limit: float | None = 1800.0

    def __post_init__(self) -> None:
        require(self.every >= 1, "log.every", "at least 1", self.every)
        require(self.tracker in TRACKERS, "log.tracker", ", ".join(TRACKERS), self.tracker)
        peak = self.peak_flops is None or 0 < self.peak_flops < math.inf
        require(peak, "log.peak_flops", "positive and finite, or null", self.peak_flops)
        require(0 < self.stall_warning < math.inf, "log.stall_warning", "positive, in seconds", self.stall_warning)
        ends = self.stall_limit is None or self.stall_warning < self.stall_limit < math.inf
        expected = f"above log.stall_warning = {self.stall_warning}, or null"
        require(ends, "log.stall_limit", expected, self.stall_limit)


def typed(config: DictConfig | Mapping[str, Any], schema: type[Schema]) -> Schema:
    """Fill the dataclass `schema`, nested sections included, from a composed configuration.

    Raises ConfigError with one line that names the key: unknown, missing, of the wrong type, or refused by its section.
    """
    given = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    try:
        return cast(Schema, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given)))
    except OmegaConfBaseException as error:
        key = error.full_key or "configuration"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
