"""One training, done by different numbers of ranks in different modes, and how far each is from one process alone.

python tests/distributed/parallel_cases.py      prints the table; gloo, CPU, four processes

The step is that of `domains.imagenet.train`: a small DiT that drifts in the features of a small masked auto-encoder,
five problems a step, so that they divide unevenly.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp
from parallel_ports import free_ports, start_rank
from torch.distributed.tensor import DTensor

from domains.imagenet.config import ImagenetConfig
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.problems import ProblemDraws, backward
from domains.imagenet.real_samples import RealSamples
from drifting import FeatureDriftLoss
from drifting.training.config import typed
from drifting.training.ema import Ema
from drifting.training.launch import prepare
from drifting.training.optimizer import apply_gradient, build_optimizer
from drifting.training.parallelize import parallelize
from drifting.training.telemetry import Telemetry
from drifting.training.world import World

RANKS = 4
STEPS = 20
CLASSES = 10

# name -> ranks, settings. Two ranks train beside two others, so that a pair shares one case and the next.
CASES = {
    "single, 2 parts": (1, {"parts": 2}),
    "ddp, 1 rank": (1, {"mode": "ddp"}),
    "fsdp, 1 rank, checkpointed": (1, {"mode": "fsdp", "checkpoint_activations": True}),
    "ddp, 2 ranks": (2, {"mode": "ddp"}),
    "fsdp, 2 ranks": (2, {"mode": "fsdp"}),
    "ddp, 2 ranks, 2 parts": (2, {"mode": "ddp", "parts": 2}),
    "fsdp, 2 ranks, 2 parts": (2, {"mode": "fsdp", "parts": 2}),
    "ddp, 2 ranks sharing samples": (2, {"mode": "ddp", "shard_generated": 2}),
    "ddp, 4 ranks": (4, {"mode": "ddp"}),
    "fsdp, 4 ranks": (4, {"mode": "fsdp"}),
    "hsdp, 2 x 2 ranks": (4, {"mode": "hsdp", "shard": 2}),
    "hsdp, 2 x 2 ranks, pairs sharing samples": (4, {"mode": "hsdp", "shard": 2, "shard_generated": 2}),
}
Result = dict[str, dict[str, torch.Tensor]]


def settings(parallel: dict, **queue: object) -> ImagenetConfig:
    dit = {"channels": 1, "size": 8, "patch": 4, "hidden": 16, "depth": 2, "heads": 2, "num_classes": CLASSES}
    dit |= {"context_tokens": 2, "style_tokens": 4, "style_codes": 8}
    drift = {"classes_per_step": 5, "num_generated": 4, "num_positive": 6, "num_unconditional": 4}
    return typed(
        {
            "run": {"name": "case", "steps": STEPS, "device": "cpu"},
            "generator": {"kind": "dit", "dit": dit},
            "encoder": {"kind": "pixels"},
            "drift": drift,
            "queue": {"per_class": 8, "unconditional": 16, "push_per_step": 8} | queue,
            "guidance": {"off_probability": 0.5},
            "optim": {"lr": 1e-3},
            "parallel": parallel,
        },
        ImagenetConfig,
    )


def images() -> LabelledImages:
    rng = torch.Generator().manual_seed(5)
    labels = torch.arange(CLASSES).repeat(12)
    means = torch.randn(CLASSES, 1, 8, 8, generator=rng)
    return LabelledImages((means[labels] + 0.5 * torch.randn(120, 1, 8, 8, generator=rng)).clamp(-1, 1), labels)


def encoder() -> MaeFeatures:
    torch.manual_seed(1)
    mae = MaskedAutoencoder(MaeConfig(channels=1, base_channels=8, blocks=(1, 1), max_groups=2))
    return MaeFeatures(mae, maps=("layer2",), patch_sizes=(2,))


def train(world: World, config: ImagenetConfig, steps: int = STEPS) -> Result:
    """Loss of every step, gradients of the first, weights and averages after the last; whole tensors on every rank."""
    own_queues = config.queue.owner == "rank"
    real = RealSamples(
        images(),
        num_classes=CLASSES,
        per_class=config.queue.per_class,
        unconditional=config.queue.unconditional,
        num_positive=config.drift.num_positive,
        num_unconditional=config.drift.num_unconditional,
        seed=0,
        rank=world.problem_share if own_queues else 0,
        ranks=world.problem_shares if own_queues else 1,
    )
    torch.manual_seed(2)
    generator = config.generator.build()
    with torch.no_grad():  # a fresh one returns zero and passes no gradient beyond its last layer
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    problems = ProblemDraws(config, real, generator, CLASSES, world)
    ema = Ema(generator, [0.9])
    model = parallelize(generator, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(generator, config.optim)
    drift_loss = FeatureDriftLoss(encoder(), config.drift.build(), budget=1)  # each feature a lot of its own
    telemetry = Telemetry(config.log, world)
    drift_loss.loss.shard_generated = world.generated
    losses, gradients = [], {}
    for step in range(steps):
        real.push(config.queue.push_per_step)
        batch = problems.draw(step)
        optimizer.zero_grad()
        loss, _ = backward(model, drift_loss, batch, telemetry, parts=config.parallel.parts, with_terms=False)
        losses.append(world.mean({"loss": loss}, batch.weight)["loss"])
        if step == 0:
            gradients = {name: whole(parameter.grad).clone() for name, parameter in generator.named_parameters()}
        apply_gradient(loss, generator, optimizer, config.optim, step=step, total_steps=steps)
        ema.update(generator)
    return {
        "loss": {"loss": torch.stack(losses)},
        "gradient": gradients,
        "weights": {name: whole(value) for name, value in generator.state_dict().items()},
        "average": {name: whole(value) for name, value in ema.model().state_dict().items()},
    }


def whole(x: torch.Tensor) -> torch.Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def differences(result: Result, reference: Result) -> dict[str, float]:
    """Largest differences: relative to the largest entry of all losses or gradients; absolute for weights."""

    def largest(key: str, names: dict[str, torch.Tensor]) -> float:
        return max(float((result[key][name] - value).abs().max()) for name, value in names.items())

    found = {key: largest(key, names) for key, names in reference.items()}
    for key in ("loss", "gradient"):
        found[key] /= max(float(value.abs().max()) for value in reference[key].values())
    found["first loss"] = float((result["loss"]["loss"][0] / reference["loss"]["loss"][0] - 1).abs())
    return found


def run_rank(rank: int, folder: str, ports: list[int]) -> None:
    """Alone, then in pairs (ranks 0 and 1 the even cases of two, ranks 2 and 3 the odd ones), then all four."""
    torch.set_num_threads(1)
    for size, port in ((1, ports[rank]), (2, ports[4 + rank // 2]), (4, ports[6])):
        start_rank(rank % size, size, port)
        cases = [(name, parallel) for name, (ranks, parallel) in CASES.items() if ranks == size]
        world = None
        for name, parallel in cases[rank // size :: RANKS // size]:
            config = settings(parallel)
            world = prepare(config.run, config.parallel)
            torch.save(train(world, config), Path(folder) / f"{name}, number {world.rank}.pt")
        if world is not None:
            world.finish()


def run_all(folder: Path) -> dict[str, list[Result]]:
    """What every rank of every case holds at its end."""
    mp.spawn(run_rank, args=(str(folder), free_ports(7)), nprocs=RANKS)
    return {
        name: [torch.load(folder / f"{name}, number {number}.pt", weights_only=True) for number in range(ranks)]
        for name, (ranks, _) in CASES.items()
    }


def alone() -> Result:
    config = settings({})
    return train(World(torch.device("cpu")), config)


def main() -> None:
    torch.set_num_threads(1)
    reference = alone()
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(Path(folder))
    columns = ["first loss", "loss", "gradient", "weights", "average"]
    sys.stdout.write(f"{'against one process':<42}" + "".join(f"{column:>12}" for column in columns) + "\n")
    for name, ranks in results.items():
        worst = [differences(result, reference) for result in ranks]
        sys.stdout.write(f"{name:<42}" + "".join(f"{max(w[c] for w in worst):>12.1e}" for c in columns) + "\n")


if __name__ == "__main__":
    main()
