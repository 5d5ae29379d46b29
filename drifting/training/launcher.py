"""Where this process stands among those that were started together: what torchrun or SLURM say, or alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from drifting.training.errors import ConfigError

SLURM_PORTS = 10_000, 20_000  # first, and how many: a job's port follows from its number


@dataclass(frozen=True)
class Placement:
    """`rank` of `size` processes; `local_rank` of `local_size` on this node; where the first one listens.

    `address` and `port` are empty where no launcher started this process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""
    port: str = ""


def read_placement(environment: Mapping[str, str]) -> Placement:
    """From the variables of torchrun (or of whoever sets the same), else from those of a SLURM job step.

    A shell inside a SLURM allocation is no job step: it is one process. Raises ConfigError naming a missing variable.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _torchrun(environment)
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _slurm(environment)
    return Placement()


def _torchrun(environment: Mapping[str, str]) -> Placement:
    def number(name: str) -> int:
        value = environment.get(name, "")
        if not value.isdecimal():
            raise ConfigError(f"{name} must be a number as torchrun sets it, got {value!r}. Start with torchrun.")
        return int(value)

    address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not address or not port:
        raise ConfigError("RANK and WORLD_SIZE are set but MASTER_ADDR or MASTER_PORT is not. Start with torchrun.")
    return Placement(
        rank=number("RANK"),
        size=number("WORLD_SIZE"),
        local_rank=number("LOCAL_RANK"),
        local_size=number("LOCAL_WORLD_SIZE"),
        address=address,
        port=port,
    )


def _slurm(environment: Mapping[str, str]) -> Placement:
    one_node = environment.get("SLURM_STEP_NUM_NODES") == "1"
    address = environment.get("MASTER_ADDR") or ("127.0.0.1" if one_node else "")
    if not address:
        raise ConfigError(
            "MASTER_ADDR is not set, and this SLURM step has several nodes. Put this line before srun: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    counts = environment["SLURM_STEP_TASKS_PER_NODE"]  # "8(x4)" or "8"
    even = re.fullmatch(r"(\d+)(?:\(x\d+\))?", counts)
    if even is None:
        raise ConfigError(f"every node must run as many tasks, SLURM gives {counts}. Use --ntasks-per-node.")
    first, span = SLURM_PORTS
    return Placement(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=int(even[1]),
        address=address,
        port=environment.get("MASTER_PORT") or str(first + int(environment["SLURM_JOB_ID"]) % span),
    )
