"""Step time and memory per GPU on clusters that nobody here has: arithmetic on counted work, every assumption named.

FLOPs, bytes and peak memory are counted (`scaling_recipes`, `scaling_traffic`, `scaling_memory`); how fast a machine
does them is `Machine`, and assumed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling_memory import Options, State, part_peak, state
from benchmarks.scaling_recipes import TEMPERATURES, Recipe, Work, skeleton, work
from benchmarks.scaling_traffic import Exchange, generated_exchange, gradient_exchange, loss_exchange

MODES = ("ddp", "hsdp", "fsdp")
BF16 = 2


@dataclass(frozen=True)
class Machine:
    """What is assumed of one H100 SXM (80 GB, 989 TFLOP/s dense bfloat16, 3.35 TB/s) and of the wires between them."""

    memory: float = 80e9  # bytes; the driver shows some 85e9, the rest is margin
    peak_flops: float = 989e12  # of MFU
    reserved: float = 4e9  # context, libraries, communication buffers
    fragmentation: float = 0.05  # of what a step allocates
    generator_flops: float = 400e12  # achieved in bfloat16: 40 % of the peak
    encoder_flops: float = 350e12  # achieved by its 3 x 3 convolutions: 35 %
    fp32_encoder: float = 0.4  # factor on encoder_flops for a float32 encoder on TF32 products
    loss_flops: float = 40e12  # the loss's products are full float32: 60 % of 67 TFLOP/s
    memory_bandwidth: float = 2.5e12  # achieved, bytes/s
    feature_passes: int = 10  # times that a step reads or writes every feature value in float32
    gpus_per_node: int = 8
    bus_in_node: float = 350e9  # bytes/s, NVLink, large messages
    bus_across: float = 200e9  # bytes/s per rank of a flat collective over nodes: half of eight 400 Gb/s adapters
    adapter: float = 25e9  # bytes/s of one GPU's own adapter, half of its line rate
    latency_in_node: float = 50e-6  # s per collective
    latency_across: float = 150e-6
    overlap: float = 0.5  # share of the generator's passes that weights and gradients can hide behind


@dataclass(frozen=True)
class Plan:
    """How a recipe is run: mode, labels in memory at a time, what is kept."""

    mode: str
    labels_per_part: int
    options: Options
    stored_references: bool  # features of real samples, in bfloat16, for the later visits of a part


@dataclass(frozen=True)
class Estimate:
    """Of one rank and one step; seconds and bytes. All estimated."""

    recipe: str
    gpus: int
    plan: Plan
    labels: int  # of one rank
    shared_by: int  # ranks that share the generated samples of a label
    parts: int
    memory: float
    compute: float
    exchange: float  # as if nothing overlapped
    exposed: float
    exchanges: list[Exchange]

    @property
    def step(self) -> float:
        return self.compute + self.exposed


def place(recipe: Recipe, gpus: int) -> tuple[int, int]:
    """Labels of one rank, and ranks that share a label's generated samples when there are more ranks than labels.

    Raises:
        ValueError: ranks that cannot share the samples out evenly.
    """
    if gpus > recipe.labels and (gpus % recipe.labels or recipe.G % (gpus // recipe.labels)):
        raise ValueError(f"gpus must share {recipe.labels} x {recipe.G} samples out evenly, got {gpus}")
    if gpus <= recipe.labels:
        return -(-recipe.labels // gpus), 1
    return 1, gpus // recipe.labels


def memory(recipe: Recipe, plan: Plan, gpus: int, machine: Machine) -> float:
    """Peak bytes of one rank."""
    labels, shared_by = place(recipe, gpus)
    kept: State = state(recipe, plan.options.bf16_encoder)
    over = {"ddp": 1, "fsdp": gpus, "hsdp": min(gpus, machine.gpus_per_node)}[plan.mode]
    parts = -(-labels // plan.labels_per_part)
    shared_out = kept.weights + kept.optimizer + kept.averages + kept.gradients
    # Between parts a rank holds the whole gradient; at the end a shard of it.
    whole_gradient = kept.gradients if over > 1 and parts > 1 else 0
    step = transient(recipe, plan.options, plan.labels_per_part)
    values = work(recipe).values
    if plan.stored_references and parts > 1:
        step += labels * (recipe.P + recipe.N) * values * BF16
    if shared_by > 1:  # sent and received features of the label's samples
        step += 2 * plan.labels_per_part * recipe.G * values * 4
    fixed = shared_out / over + whole_gradient + kept.encoder + machine.reserved
    return fixed + step * (1 + machine.fragmentation)


def transient(recipe: Recipe, options: Options, labels: int) -> float:
    """`part_peak`; beyond two labels in proportion (one label alone needs less: some copies are views then)."""
    return part_peak(recipe, options, 1) if labels == 1 else part_peak(recipe, options, 2) * labels / 2


def estimate(recipe: Recipe, plan: Plan, gpus: int, machine: Machine) -> Estimate:
    """Time of one step: the products, the passes over the features, the update; exchanges not hidden behind them."""
    counted: Work = work(recipe)
    labels, shared_by = place(recipe, gpus)
    generated, real = labels * recipe.G / shared_by, labels * (recipe.P + recipe.N)
    parts = -(-labels // plan.labels_per_part)
    visits = 3 if parts > 1 else 1  # backward_in_parts visits a part twice before its backward pass
    encoder_flops = machine.encoder_flops * (1 if plan.options.bf16_encoder else machine.fp32_encoder)
    extra_generator = visits - 1 + plan.options.checkpoint_generator
    extra_encoder = visits - 1 + plan.options.checkpoint_encoder
    generator = generated * (counted.generate_both_ways + extra_generator * counted.generate) / machine.generator_flops
    encoder = generated * (counted.encode_both_ways + extra_encoder * counted.encode) / encoder_flops
    references = real * counted.encode * (1 if plan.stored_references else visits) / encoder_flops
    # Statistics come first of parts, and of lots where ranks share them: both are visited three times.
    loss_visits = 3 if parts > 1 or (counted.lots > 1 and gpus > 1) else 1
    loss = loss_visits * labels * counted.loss / machine.loss_flops
    features = loss_visits * machine.feature_passes * (labels * recipe.G + real) * counted.values * 4
    kept = state(recipe, plan.options.bf16_encoder)
    over = {"ddp": 1, "fsdp": gpus, "hsdp": min(gpus, machine.gpus_per_node)}[plan.mode]
    update = 2 * (kept.weights + kept.gradients + kept.optimizer + kept.averages) / over
    compute = generator + encoder + references + loss + (features + update) / machine.memory_bandwidth

    passes = parts * visits + parts
    exchanges = gradient_exchange(
        skeleton(recipe), plan.mode, gpus, shard=machine.gpus_per_node, gathered=BF16, passes=passes
    )
    # The statistics of a batch are exchanged once for all its parts and features.
    blocking = loss_exchange(counted.keys, len(TEMPERATURES), gpus)
    if shared_by > 1:
        blocking += generated_exchange(labels, recipe.G, counted.values, shared_by, max(parts, counted.lots))
    hidden = sum(seconds(each, gpus, machine) for each in exchanges)
    waited = sum(seconds(each, gpus, machine) for each in blocking)
    # Gradients travel during the last part's backward pass, gathered weights during all passes.
    window = machine.overlap * generator * (1 if plan.mode != "ddp" else 2 / 3 / parts)
    return Estimate(
        recipe=recipe.name,
        gpus=gpus,
        plan=plan,
        labels=labels,
        shared_by=shared_by,
        parts=parts,
        memory=memory(recipe, plan, gpus, machine),
        compute=compute,
        exchange=hidden + waited,
        exposed=max(0.0, hidden - window) + waited,
        exchanges=exchanges + blocking,
    )


def seconds(exchange: Exchange, gpus: int, machine: Machine) -> float:
    """Of a ring: (R - 1) / R of the payload per rank, twice that for an all-reduce, and a latency for each call."""
    ranks = exchange.ranks
    if ranks == 1:
        return 0.0
    factor = (2 if exchange.operation == "all-reduce" else 1) * (ranks - 1) / ranks
    in_node = exchange.spread == 1 and ranks <= machine.gpus_per_node
    if in_node:
        bandwidth, latency = machine.bus_in_node, machine.latency_in_node
    else:
        bandwidth = machine.bus_across if exchange.spread == 1 else machine.adapter
        latency = machine.latency_across
    return factor * exchange.payload / exchange.spread / bandwidth + exchange.calls * latency


def fitting_plans(recipe: Recipe, gpus: int, machine: Machine, options: Sequence[Options]) -> list[Plan]:
    """What can be tried and fits: modes, divisors of a rank's labels as parts, what is kept."""
    labels, _ = place(recipe, gpus)
    sizes = [size for size in range(1, labels + 1) if labels % size == 0]
    modes = [mode for mode in MODES if gpus > {"ddp": 0, "fsdp": 1, "hsdp": machine.gpus_per_node}[mode]]
    found = []
    for mode, kept, stored in itertools.product(modes, options, (False, True)):
        for size in sizes[:-1] if stored else sizes:  # in one part features are encoded once anyway
            plan = Plan(mode, size, kept, stored)
            if memory(recipe, plan, gpus, machine) > machine.memory:
                break  # more labels at a time take more
            found.append(plan)
    return found


def best(recipe: Recipe, gpus: int, machine: Machine, options: Sequence[Options]) -> Estimate | None:
    """The fastest plan that fits; of equally fast ones (1 %) the first. None if nothing fits."""
    found = [estimate(recipe, plan, gpus, machine) for plan in fitting_plans(recipe, gpus, machine, options)]
    if not found:
        return None
    fastest = min(each.step for each in found)
    return next(each for each in found if each.step <= 1.01 * fastest)
