"""A module made ready for its ranks, from outside: no model file mentions parallelism.

    generator = build()                                        # on its device, the same weights on every rank
    ema = Ema(generator, decays)
    model = parallelize(generator, world, config.parallel, copies=ema.models)
    optimizer = build_optimizer(generator, config.optim)       # after it: fully_shard replaces the parameters
    model(...)                                                 # `generator` keeps the names and the state

The order, and why:

1. activation checkpointing, per block: what is recomputed lies inside what is compiled and inside what is sharded, so
   that a block's weights are gathered once for its recomputation and its backward pass;
2. torch.compile, per block: equal blocks share one compiled graph, and no graph contains a collective;
3. autocast around the whole forward pass, for `precision` bfloat16;
4. fully_shard per block, then for what remains (FSDP2; the mesh decides between FSDP and HSDP), or
   DistributedDataParallel. Both average gradients over ranks.

Blocks are the children of the module's nn.ModuleLists, unless they are named.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from drifting.training.config import ParallelConfig
from drifting.training.world import World


def parallelize(
    module: nn.Module,
    world: World,
    config: ParallelConfig,
    *,
    copies: Iterable[nn.Module] = (),
    blocks: Sequence[nn.Module] | None = None,
) -> nn.Module:
    """The module to call in training; `module` itself is changed in place and stays the one to name and to save.

    Args:
        module: on `world.device`, float32 weights, equal on every rank.
        world: the ranks.
        config: how they share the work.
        copies: modules of the same structure, such as averages: sharded likewise and otherwise left alone.
        blocks: parts of `module` to checkpoint, compile and shard each by itself; None finds them. Copies are always
            searched.

    Raises:
        RuntimeError: ranks hold different weights.
    """
    world.refuse_differences(module)
    parts = find_blocks(module) if blocks is None else list(blocks)
    for block in parts:
        if config.checkpoint_activations:
            block.forward = _recomputed(block.forward)
        if config.compile:
            block.compile()
    low = torch.bfloat16 if config.precision == "bfloat16" else None
    if low is not None:
        module.forward = torch.autocast(world.device.type, dtype=low)(module.forward)  # type: ignore[method-assign]
    if low is not None or config.checkpoint_activations:
        module.__deepcopy__ = _refuse_copy  # type: ignore[assignment]
    if world.mesh is not None:
        # The model casts its inputs itself; gradients are summed in float32.
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        _shard(module, parts, world.mesh, policy)
        for copy in copies:
            # Resharded after each use, the root too: between two updates a copy must be what the optimiser sees.
            _shard(copy, find_blocks(copy), world.mesh, MixedPrecisionPolicy(), reshard_root=True)
        return module
    if config.mode == "ddp":
        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
    return module


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The children with parameters of every nn.ModuleList in `module` that lies in no other block, in order."""
    blocks: list[nn.Module] = []
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            blocks += [child] if next(child.parameters(), None) is not None else []
        else:
            blocks += find_blocks(child)
    return blocks


@contextmanager
def unsynchronized(model: nn.Module) -> Iterator[None]:
    """Backward passes inside only add to this rank's gradients; the next one outside exchanges them all.

    FSDP holds a whole gradient on every rank meanwhile. `model` as `parallelize` returned it.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    elif isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def weigh_gradient(x: Tensor, weight: float) -> Tensor:
    """`x` itself; the gradient that passes through it is multiplied by `weight` (see `World.weight`)."""
    if weight != 1 and x.requires_grad:
        x.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]
    return x


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` under activation checkpointing; a plain function, since torch.compile does not look into a partial."""

    def checkpointed(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return checkpointed


def _refuse_copy(memo: object) -> NoReturn:
    raise RuntimeError("a parallelized module cannot be copied: its copy would run the original. Copy it before.")


def _shard(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    *,
    reshard_root: bool | None = None,
) -> None:
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_root)
