"""A whole training step of small networks on 1, 2 and 4 processes of this machine: times, and what they exchange.

Every process has one thread and its share of the labels. Beside the wall time stands the processor time of all
processes per image: on a machine with fewer free cores than processes only the latter tells what parallelism costs.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scaling_traffic import Exchange, TrafficCount, generated_exchange, gradient_exchange, loss_exchange
from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from drifting import DriftLoss, FeatureDriftLoss
from drifting.training.communication_time import timed_collectives
from drifting.training.parallelize import find_blocks
from drifting.training.step_timer import StepTimer

TEMPERATURES = (0.02, 0.05, 0.2)
ALPHA = 1.5


@dataclass(frozen=True)
class Sizes:
    """Networks and problems of the measured step."""

    hidden: int = 96
    depth: int = 4
    mae: int = 16
    labels: int = 4  # per process when they scale weakly, of all processes when they scale strongly
    G: int = 16
    P: int = 16
    N: int = 4
    steps: int = 8


QUICK = Sizes(hidden=32, depth=2, mae=8, labels=2, G=4, P=4, N=2, steps=2)


def build(sizes: Sizes) -> tuple[DiTGenerator, MaeFeatures]:
    """Random weights, the same in every process; the generator's last layer too, else every sample is zero."""
    torch.manual_seed(0)
    generator = DiTGenerator(
        GeneratorConfig(channels=1, size=8, hidden=sizes.hidden, depth=sizes.depth, heads=4, num_classes=10)
    )
    nn.init.normal_(generator.final.linear.weight, std=0.02)
    mae = MaskedAutoencoder(MaeConfig(channels=1, base_channels=sizes.mae, blocks=(1, 1, 1), max_groups=4))
    return generator, MaeFeatures(mae)


def modes_of(ranks: int) -> list[str]:
    """What so many processes can run; "shared" is ddp with the generated samples of each label shared by two."""
    return {1: ["single", "ddp"], 2: ["ddp", "fsdp", "shared"]}.get(ranks, ["ddp", "fsdp", "hsdp", "shared"])


def prepare(module: nn.Module, mode: str, ranks: int) -> nn.Module:
    if mode in ("ddp", "shared"):
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    if mode == "single":
        return module
    shape, names = ((ranks,), ("shard",)) if mode == "fsdp" else ((ranks // 2, 2), ("replicate", "shard"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for block in find_blocks(module):
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def expected(sizes: Sizes, mode: str, ranks: int, labels: int, features: dict[str, Tensor]) -> list[Exchange]:
    """By the formulas, for one rank with `labels`."""
    generator, _ = build(sizes)
    found = loss_exchange(len(features), len(TEMPERATURES), ranks)
    if mode == "shared":
        values = sum(feature[0].numel() for feature in features.values())
        found += generated_exchange(labels, sizes.G, values, 2)
    if mode != "single":
        found += gradient_exchange(generator, mode.replace("shared", "ddp"), ranks, shard=2)
    return found


def measure(rank: int, ranks: int, mode: str, labels: int, sizes: Sizes) -> dict[str, Any]:
    """Steps of this rank with `labels` labels: seconds, processor seconds, time split, and bytes by operation."""
    generator, encoder = build(sizes)
    features = encoder(torch.zeros(1, 1, 8, 8))
    pairs = [dist.new_group([first, first + 1]) for first in range(0, ranks, 2)] if mode == "shared" else []
    model = prepare(generator, mode, ranks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    timer = StepTimer(torch.device("cpu"))
    group = pairs[rank // 2] if pairs else None
    loss_function = FeatureDriftLoss(
        timer.wrap("encoder", encoder), DriftLoss(TEMPERATURES, shard_generated=group), budget=None
    )
    G = sizes.G // (2 if mode == "shared" else 1)

    def step() -> None:
        with timer.region("data"):
            real, unconditional = (torch.randn(labels, count, 1, 8, 8) for count in (sizes.P, sizes.N))
        with timer.region("generator"):
            noise, alpha = torch.randn(labels * G, 1, 8, 8), torch.full((labels * G,), ALPHA)
            samples = model(noise, torch.zeros(labels * G, dtype=torch.int64), alpha).unflatten(0, (labels, G))
        with timer.region("loss"):
            loss = loss_function(samples, real, unconditional, neg_weight=torch.ones(labels, sizes.N))
        with timer.region("backward"):
            loss.backward()
        with timer.region("update"):
            optimizer.step()
            optimizer.zero_grad()
        timer.step(labels * G)

    for _ in range(2):  # compiles the loss's C functions, sets up connections, orders the buckets of gradients
        step()
    with TrafficCount() as traffic:
        step()
    timer.figures()
    dist.barrier()
    processor, seconds = time.process_time(), []
    with timed_collectives(timer):
        for _ in range(sizes.steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
    split = {name.removeprefix("time/"): value for name, value in timer.figures().items() if name.startswith("time/")}
    return {
        "seconds": seconds,
        "processor": (time.process_time() - processor) / sizes.steps,
        "images": labels * G,
        "split": split,
        "payload": dict(traffic.payload),
        "calls": dict(traffic.calls),
        "expected": [each._asdict() for each in expected(sizes, mode, ranks, labels, features)],
        "hook": _hooked_bytes(model, labels * G) if mode == "ddp" else None,
    }


def _hooked_bytes(model: nn.Module, count: int) -> int:
    """Bytes of gradients that the module's communication hook sees in one backward pass."""
    seen = []

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        seen.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, hook)
    model(torch.randn(count, 1, 8, 8), torch.zeros(count, dtype=torch.int64), torch.ones(count)).sum().backward()
    return sum(seen)


def run_rank(rank: int, ranks: int, sizes: Sizes, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store{ranks}", ranks), rank=rank, world_size=ranks)
    results = {}
    for mode in modes_of(ranks):
        shares = ranks // 2 if mode == "shared" else ranks
        plans = {"weak": sizes.labels * (ranks // shares), "strong": sizes.labels // shares}
        for kind, labels in plans.items():
            if labels:
                results[f"{kind} {mode}"] = measure(rank, ranks, mode, labels, sizes)
    torch.save(results, f"{folder}/{ranks}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure_processes(counts: Iterable[int], sizes: Sizes, folder: Path) -> dict[int, list[dict[str, Any]]]:
    """{processes: results of every rank}, {"<weak|strong> <mode>": figures of `measure`}."""
    found = {}
    for ranks in counts:
        mp.spawn(run_rank, args=(ranks, sizes, str(folder)), nprocs=ranks)
        files = [folder / f"{ranks}-{rank}.pt" for rank in range(ranks)]
        found[ranks] = [torch.load(file, weights_only=True) for file in files]
    return found
