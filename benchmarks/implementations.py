"""The candidates: each prepares one forward and backward pass of the drifting loss on a given problem.

What a program does once per shape (copying into its own layout, compiling) belongs to the preparation and is not timed.
Shapes: B problems, G generated, P positives, N extra negatives, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.official_torch import TEMPERATURES, official_loss
from benchmarks.problem import Problem
from drifting import DriftLoss


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One forward and backward pass, ready to run."""

    run: Callable[[], Any]  # finished when it returns the gradient, in the candidate's own layout
    gradient: Callable[[Any], Tensor]  # that, as [B, G, D]
    planned_bytes: int | None = None  # temporaries and results, where a compiler has planned them; None: count them


def ours(problem: Problem) -> Evaluation:
    """This library's defaults."""
    gen, loss = problem.gen.clone().requires_grad_(), DriftLoss(TEMPERATURES)

    def run() -> Tensor:
        value = loss(gen, problem.pos, problem.neg, neg_weight=problem.neg_weight)
        return torch.autograd.grad(value, gen)[0]

    return Evaluation(run, lambda gradient: gradient)


def ours_captured(problem: Problem) -> Evaluation:
    """The same in a CUDA graph, as a training step that is captured has it: inputs stay where they are."""
    call = ours(problem).run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and sends constants outside of the capture
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = call()
    held = torch.cuda.max_memory_allocated() - before  # what it needs it keeps

    def run() -> Tensor:
        graph.replay()
        return gradient

    return Evaluation(run, lambda gradient: gradient, planned_bytes=held)


def transcription(problem: Problem) -> Evaluation:
    """The official formula in PyTorch."""
    gen = problem.gen.clone().requires_grad_()
    return Evaluation(lambda: torch.autograd.grad(official_loss(gen, *problem[1:]), gen)[0], lambda gradient: gradient)


def compiled_transcription(problem: Problem) -> Evaluation:
    """The official formula in PyTorch, compiled for this shape."""
    torch.compiler.reset()
    compiled = torch.compile(official_loss, dynamic=False)
    gen = problem.gen.clone().requires_grad_()
    return Evaluation(lambda: torch.autograd.grad(compiled(gen, *problem[1:]), gen)[0], lambda gradient: gradient)


def jax_formula(problem: Problem) -> Evaluation:
    """The official formula in JAX, compiled for this shape; `value_and_grad`, waited for. Products in full float32."""
    import jax
    import jax.numpy as jnp

    from benchmarks.official_jax import official_loss as official_jax_loss

    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's default is TF32
    arrays = [None if block is None else jnp.asarray(block.cpu().numpy()) for block in problem]
    compiled = jax.jit(jax.value_and_grad(official_jax_loss)).lower(*arrays).compile()
    plan = compiled.memory_analysis()
    return Evaluation(
        lambda: jax.block_until_ready(compiled(*arrays))[1],
        lambda gradient: torch.tensor(jax.device_get(gradient)),
        plan.temp_size_in_bytes + plan.output_size_in_bytes,
    )


def drift_models(problem: Problem) -> Evaluation:
    """PyPI's drift-models, set as close to the official objective as its interface allows.

    Equal: the three temperatures, summed before one squared error; feature scale and drift RMS over the whole batch;
    the affinity floor (its `eps`); the self mask (100 mean distances, which are sqrt(D) each). Different: one weight
    for all extra negatives, and inside the softmax instead of after it. At weight 1, or without extra negatives, both
    agree.
    """
    from drifting_models import (
        DriftFieldConfig,
        DriftingLossConfig,
        FeatureDriftingConfig,
        feature_space_drifting_loss,
    )

    # Its layout is [samples, problems, features]; a feature map arrives in it, so the copy is not part of the loss.
    gen, pos = (block.transpose(0, 1).contiguous() for block in (problem.gen, problem.pos))
    gen.requires_grad_()
    neg = None if problem.neg is None else {"x": problem.neg.transpose(0, 1).contiguous()}
    neg_weight = 1.0 if problem.neg_weight is None else float(problem.neg_weight[0, 0])
    field = DriftFieldConfig(self_mask_value=100 * math.sqrt(gen.shape[-1]), eps=1e-6)
    features = FeatureDriftingConfig(
        temperatures=TEMPERATURES, temperature_aggregation="sum_drifts_then_mse", loss_term_reduction="mean"
    )

    def run() -> Tensor:
        loss, _ = feature_space_drifting_loss(
            generated_feature_vectors={"x": gen},
            positive_feature_vectors={"x": pos},
            unconditional_feature_vectors=neg,
            base_loss_config=DriftingLossConfig(field),
            feature_config=features,
            unconditional_weight=neg_weight,
        )
        return torch.autograd.grad(loss, gen)[0]

    return Evaluation(run, lambda gradient: gradient.transpose(0, 1))


IMPLEMENTATIONS: dict[str, Callable[[Problem], Evaluation]] = {
    "ours": ours,
    "transcription": transcription,
    "jax": jax_formula,
    "drift-models": drift_models,
}

# A GPU's: compilation takes some ten seconds for each shape, and pays there; PyPI's package gains nothing from either.
ON_GPU = {
    "ours": ours,
    "ours, CUDA graph": ours_captured,
    "transcription": transcription,
    "transcription, compiled": compiled_transcription,
    "jax": jax_formula,
}


def reference_gradient(problem: Problem) -> Tensor:
    """Gradient [B, G, D] of the official formula in float64."""
    double = Problem(*(None if block is None else block.double() for block in problem))
    return transcription(double).run()
