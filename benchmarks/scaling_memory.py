"""Memory of one training step without a GPU: the step runs on the meta device, and what is alive is added up.

Every storage that an operation makes counts from then until it is freed, so that recomputation, the loss's working
memory and gradients are in it as they are in the code. What the allocator, the libraries and the other ranks take is
not (see `scaling_estimate.Machine`).
"""

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.scaling_recipes import TEMPERATURES, Recipe, build_encoder, build_generator, inputs
from domains.imagenet.transformer import Attention
from drifting import DriftLoss, FeatureDriftLoss


class LiveBytes(TorchDispatchMode):
    """Bytes of storages that operations inside have made and that are still alive; `known` ones do not count."""

    def __init__(self, known: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.is_meta:
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class _LowPrecision(TorchFunctionMode):
    """What autocast to bfloat16 and flash attention do, where torch has neither: on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            args = tuple(value.bfloat16() if isinstance(value, Tensor) else value for value in args)
        if func is F.scaled_dot_product_attention:
            if args[0].dtype == torch.bfloat16:
                return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        return func(*args, **kwargs)


def in_bfloat16(module: nn.Module) -> nn.Module:
    """Linear layers and attention of `module` as under autocast; what switches autocast off itself is left alone."""

    def lowered(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            with _LowPrecision():
                return forward(*args, **kwargs)

        return call

    for part in module.modules():
        if isinstance(part, nn.Linear | Attention):
            part.forward = lowered(part.forward)
    return module


@dataclass(frozen=True)
class Options:
    """What is kept for the backward pass."""

    bf16_encoder: bool = True
    checkpoint_encoder: bool = True
    checkpoint_generator: bool = True

    def __str__(self) -> str:
        again = [name for name in ("encoder", "generator") if getattr(self, f"checkpoint_{name}")]
        return f"{'bf16' if self.bf16_encoder else 'fp32'} encoder, recomputed: {' and '.join(again) or 'nothing'}"


@cache
def part_peak(recipe: Recipe, options: Options, labels: int) -> int:
    """Peak bytes of the forward and backward pass of so many labels, beyond weights, gradients and optimiser."""
    generator = in_bfloat16(build_generator(recipe, checkpoint=options.checkpoint_generator))
    for parameter in generator.parameters():
        parameter.grad = torch.empty_like(parameter)  # gradients of earlier parts, which later ones are added to
    dtype = torch.bfloat16 if options.bf16_encoder else None
    encoder = build_encoder(recipe, dtype=dtype, checkpoint=options.checkpoint_encoder)
    loss = FeatureDriftLoss(encoder, DriftLoss(TEMPERATURES))
    config = generator.cfg
    held = [*generator.parameters(), *encoder.parameters(), *encoder.buffers()]
    known = tuple(held) + tuple(parameter.grad for parameter in generator.parameters())
    with LiveBytes(known) as memory, torch.device("meta"):
        samples = generator(*inputs(config, labels * recipe.G)).unflatten(0, (labels, recipe.G))
        real, unconditional = (torch.empty(labels, count, *samples.shape[2:]) for count in (recipe.P, recipe.N))
        loss(samples, real, unconditional, neg_weight=torch.empty(labels, recipe.N)).backward()
    return memory.peak


@dataclass(frozen=True)
class State:
    """What stays between steps, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    encoder: int


@cache
def state(recipe: Recipe, bf16_encoder: bool) -> State:
    """Of one process that shares nothing; made on the meta device."""
    with _counted() as total:
        generator = build_generator(recipe)
        averages = [copy.deepcopy(generator) for _ in range(recipe.averages)]
        encoder = build_encoder(recipe, dtype=torch.bfloat16 if bf16_encoder else None)
        weights = total(generator.parameters())
        return State(
            weights=weights,
            gradients=weights,
            optimizer=2 * weights,  # AdamW: two moments of each
            averages=sum(total(average.parameters()) for average in averages),
            encoder=total([*encoder.parameters(), *encoder.buffers()]),
        )


@contextmanager
def _counted() -> Iterator[Callable[..., int]]:
    with torch.device("meta"):
        yield lambda tensors: sum(tensor.untyped_storage().nbytes() for tensor in tensors)
