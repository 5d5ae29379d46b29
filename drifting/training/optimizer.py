"""AdamW, its learning rate as a function of the step, and a step that never applies a non-finite gradient."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from drifting.training.config import OptimConfig
from drifting.training.errors import NonFiniteError


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over every trainable parameter, all with the same weight decay (as the paper's released code)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("module has no parameter that requires a gradient, so there is nothing to optimise")
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Learning rate of update number `step` in 0 .. total_steps - 1.

    step < W:    warmup_lr + (lr - warmup_lr) step / W,     W = warmup_steps
    "constant":  lr
    "cosine":    lr (r + (1 - r) (1 + cos(pi u)) / 2),      r = final_ratio, u = (step - W) / (total_steps - 1 - W)
    """
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = total_steps - 1 - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / span) if span > 0 else 1.0
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * (1 + math.cos(math.pi * progress)) / 2)


def optimizer_step(
    loss: Tensor,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    *,
    step: int,
    total_steps: int,
) -> Tensor:
    """Backward, clip, update; returns the gradient's L2 norm before clipping, [] on the device.

    loss []; the rest as in `apply_gradient`.
    """
    if loss.shape != ():
        raise ValueError(f"loss must be a scalar tensor of shape (), got {tuple(loss.shape)}; take its mean or sum")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return apply_gradient(loss, module, optimizer, config, step=step, total_steps=total_steps)


def apply_gradient(
    loss: Tensor,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    *,
    step: int,
    total_steps: int,
) -> Tensor:
    """Clip and apply the gradients that the parameters hold; returns their L2 norm before clipping, [] on the device.

    The norm is that of the whole gradient, of all shards where ranks share out the weights. `loss`, [], is this rank's
    and only looked at; `step` is the number of updates done before.

    Raises NonFiniteError, with weights and optimiser state untouched, if the loss of any rank or the gradient is NaN or
    infinite: on every rank at the same step. One host synchronisation; with several ranks one small exchange.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = get_total_norm(gradients)
    norm = total.full_tensor() if isinstance(total, DTensor) else total
    figures = _of_all_ranks(torch.stack([loss.detach().float(), norm.float()]))  # [R, 2]
    if not bool(torch.isfinite(figures).all()):
        raise NonFiniteError(
            f"step {step}: {_cause(figures, module)}; the weights are those of step {step}, not updated. "
            "Lower optim.lr or find the bad input; the same command goes on from the last checkpoint."
        )
    if config.clip_norm is not None:
        # torch's clip_grads_with_norm_, on each rank's shards: the factor is the same everywhere.
        factor = (config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config, total_steps)
    optimizer.step()
    return norm


def local_part(x: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard, sharing memory, of a DTensor; else `x`."""
    return x.to_local() if isinstance(x, DTensor) else x


def _of_all_ranks(figures: Tensor) -> Tensor:
    """figures [K] of this rank -> [R, K] of all."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return figures[None]
    every = figures.new_zeros(dist.get_world_size(), len(figures))
    every[dist.get_rank()] = figures
    dist.all_reduce(every)  # each rank's row and zeros; a NaN stays in its row
    return every


def _cause(figures: Tensor, module: nn.Module) -> str:
    """figures [R, 2]: loss and gradient norm of every rank. The parameters named are those of this rank's shards."""
    losses = figures[:, 0].tolist()
    bad_ranks = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad_ranks:
        said = ", ".join(f"{losses[rank]} on rank {rank}" for rank in bad_ranks) if len(losses) > 1 else f"{losses[0]}"
        return f"the loss is {said}"
    bad = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not torch.isfinite(local_part(parameter.grad)).all()
    ]
    if not bad and len(losses) > 1:
        return "the gradient is not finite in what another rank holds of it, or its norm overflows"
    if not bad:
        return "every gradient is finite but their norm overflows"
    others = f" and of {len(bad) - 1} more parameters" if len(bad) > 1 else ""
    loss = losses[dist.get_rank() if len(losses) > 1 else 0]
    return f"the loss is {loss} but the gradient of {bad[0]}{others} is not finite"
