"""AdamW, its learning rate as a function of the step, and a step that never applies a non-finite gradient."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

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

    loss []; `step` is the number of updates done before. Raises NonFiniteError, with weights and optimiser state
    untouched, if the loss or a gradient is NaN or infinite. One host synchronisation.
    """
    if loss.shape != ():
        raise ValueError(f"loss must be a scalar tensor of shape (), got {tuple(loss.shape)}; take its mean or sum")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not bool(torch.isfinite(torch.stack([loss.detach().float(), norm.float()])).all()):
        raise NonFiniteError(
            f"step {step}: {_cause(loss, module)}; the weights are those of step {step}, not updated. "
            "Lower optim.lr or find the bad input; the same command goes on from the last checkpoint."
        )
    if config.clip_norm is not None:
        clip_grads_with_norm_(parameters, config.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config, total_steps)
    optimizer.step()
    return norm


def _cause(loss: Tensor, module: nn.Module) -> str:
    if not torch.isfinite(loss):
        return f"the loss is {float(loss.detach())}"
    bad = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    if not bad:
        return "every gradient is finite but their norm overflows"
    others = f" and of {len(bad) - 1} more parameters" if len(bad) > 1 else ""
    return f"the loss is {float(loss.detach())} but the gradient of {bad[0]}{others} is not finite"
