"""The process before the first tensor: threads, device, determinism, and the ranks it was started with.

    world = prepare(config.run, config.parallel)
    ...
    world.finish()

torchrun and SLURM (srun) are recognised by their variables; without either it is one process. See docs/clusters.md.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from drifting.training.config import ParallelConfig, RunConfig
from drifting.training.errors import ConfigError, OtherRankError
from drifting.training.launcher import Placement, read_placement
from drifting.training.ranks import Ranks
from drifting.training.world import World


def prepare(run: RunConfig, parallel: ParallelConfig | None = None) -> World:
    """Set up this process for `run`; "auto" is the CUDA device of its local rank where there is one, else the CPU.

    Every mode but "single" has a process group, of one rank where no launcher started several. A rank that waits
    longer than `parallel.timeout` for another ends with an error.

    Raises ConfigError if the asked device does not exist (a run never moves to another device silently), or if the
    mode does not fit the number of ranks.
    """
    parallel = ParallelConfig() if parallel is None else parallel
    placement = read_placement(os.environ)
    _check_fits(parallel, placement)
    torch.set_num_threads(run.threads)
    device = device_of(run.device, placement)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = not run.deterministic
    if run.deterministic:
        # cuBLAS reads it when CUDA starts and has no reproducible mode without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic)
    if parallel.mode == "single":
        return World(device)
    Ranks.timeout = timedelta(seconds=parallel.timeout)
    _join(placement, device)
    shared = parallel.shard_generated
    return World(
        device,
        placement.rank,
        placement.size,
        mesh=_weights_mesh(parallel, placement, device),
        shard_generated=shared,
        generated=None
        if shared == 1
        else _mesh(device, problems=placement.size // shared, generated=shared).get_group(1),
    )


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn the error of a broken exchange between ranks into one line: OtherRankError."""
    try:
        yield
    except RuntimeError as error:  # gloo raises nothing more specific
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)) or not dist.is_initialized():
            raise
        raise OtherRankError(
            f"rank {dist.get_rank()} lost another rank, which ended, or made it wait longer than parallel.timeout; "
            f"that rank's own message says why. ({str(error).splitlines()[0]})"
        ) from error


def _check_fits(parallel: ParallelConfig, placement: Placement) -> None:
    size = placement.size
    if parallel.mode == "single" and size > 1:
        raise ConfigError(
            f"parallel=single is one process, but {size} were started. Add parallel=ddp (or fsdp, hsdp), "
            "or start the command without a launcher."
        )
    if size % parallel.shard_generated:
        raise ConfigError(
            f"parallel.shard_generated must divide the number of ranks, {size}, got {parallel.shard_generated}"
        )
    if parallel.mode == "hsdp" and size % (parallel.shard or placement.local_size):
        raise ConfigError(
            f"parallel.shard must divide the number of ranks, {size}, got {parallel.shard or placement.local_size}"
        )


def device_of(asked: str, placement: Placement, key: str = "run.device") -> torch.device:
    """The device of a rank: "auto" is the CUDA device of its local rank where there is one, else the CPU.

    Raises ConfigError, which names `key`, if the asked device does not exist.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (asked == "auto" and not gpus) or asked == "cpu":
        return torch.device("cpu")
    index = torch.device("cuda" if asked == "auto" else asked).index
    if index is not None and placement.local_size > 1:
        raise ConfigError(
            f"{key}={asked} is one device for {placement.local_size} processes on this node. "
            f"Use {key}=cuda, which gives each its own."
        )
    index = placement.local_rank if index is None else index
    if index >= gpus:
        processes = f" for {placement.local_size} processes" if placement.local_size > 1 else ""
        raise ConfigError(
            f"{key}={asked} is not available: this machine has {gpus} CUDA devices{processes}. "
            f"Use {key}=auto, and no more processes than devices."
        )
    return torch.device("cuda", index)


def _join(placement: Placement, device: torch.device) -> None:
    """The default process group; one that is there already is used, so that tests start their ranks once."""
    if dist.is_initialized():
        return
    backend, bound = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    timeout = Ranks.timeout
    if not placement.address:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=bound)
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = placement.address, placement.port
    dist.init_process_group(backend, rank=placement.rank, world_size=placement.size, timeout=timeout, device_id=bound)


def _weights_mesh(parallel: ParallelConfig, placement: Placement, device: torch.device) -> DeviceMesh | None:
    if parallel.mode == "ddp":
        return None
    if parallel.mode == "fsdp":
        return _mesh(device, shard=placement.size)
    shard = parallel.shard or placement.local_size
    return _mesh(device, replicate=placement.size // shard, shard=shard)


def _mesh(device: torch.device, **sizes: int) -> DeviceMesh:
    """All ranks in order, the last dimension fastest."""
    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
