"""Trained networks that the loss looks through: their weights never change, gradients pass to their input."""

from collections.abc import Callable
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as activation_checkpointing

Network = TypeVar("Network", bound=nn.Module)


class FrozenModule(nn.Module):
    """Holds networks that were taken over by `freeze`, and stays in eval mode whatever `train()` asks.

    Batch statistics and dropout of a frozen network must not change while a generator trains through it.
    """

    def train(self, mode: bool = True) -> Self:
        """Has no effect but to keep everything in eval mode."""
        return super().train(False)


def freeze(network: Network, dtype: torch.dtype | None = None) -> Network:
    """Take a network over, not copied: no parameter gradients, eval mode, weights in `dtype` (None: as they are)."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating point type, got {dtype}")
    network.requires_grad_(False).eval()
    return network if dtype is None else network.to(dtype=dtype)


def weight_dtype(network: nn.Module) -> torch.dtype:
    """Floating point type in which a network computes; its input must have it."""
    return next(network.parameters()).dtype


def run(block: Callable[[Tensor], Tensor], x: Tensor, checkpoint: bool) -> Tensor:
    """block(x); with `checkpoint`, what it holds for the backward pass is computed again there: the same numbers."""
    if not (checkpoint and torch.is_grad_enabled()):
        return block(x)
    # Frozen blocks draw nothing at random, so the generator's state need not be kept.
    result: Tensor = activation_checkpointing.checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return result
