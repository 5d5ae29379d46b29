"""FLOPs that a training step needs, counted once on the meta device, and those that a device can do: MFU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "MI300X": 1307e12,
}
"""Dense bfloat16 products per second by the vendors' data sheets; the first name found in that of the device counts."""


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products of what runs inside, 2 FLOPs for each multiplication and addition.

    What a backward pass computes again (activation checkpointing) is counted apart: it is work, but none that the model
    needs. Attention has to run where torch has a formula for it, on the meta device for example.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.needed = 0
        self.recomputed = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = int(formula(*args, **(kwargs or {}), out_val=result))
            # Inside a backward pass only a forward pass that is done again has gradients enabled.
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                self.recomputed += flops
            else:
                self.needed += flops
        return result


def training_flops(
    generator: nn.Module, inputs: Sequence[Tensor], encoder: nn.Module, *, generated: int, references: int
) -> int:
    """FLOPs of one step's networks: generated samples forward and backward through both, real ones through the encoder.

    Nothing is computed and no memory taken. The drifting loss itself is left out, as are other than matrix products.

    Args:
        generator: inputs -> samples [K, *S]; before it is wrapped for several ranks.
        inputs: of K samples, on any device; only their shapes and types are read.
        encoder: samples [K, *S] -> {key: [K, F, D]}, frozen.
        generated: samples that the generator makes in the step.
        references: real samples that are encoded in the step.
    """
    step = _Step(generator, encoder)
    given = [value.detach().to("meta") for value in inputs]
    whole, reference = functional_call(step, _on_meta(step), tuple(given))
    return int(whole * generated + reference * references) // len(given[0])


class _Step(nn.Module):
    """Forward and backward pass, all inside one call, for as long as its parameters are those without memory."""

    def __init__(self, generator: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder

    def forward(self, *inputs: Tensor) -> tuple[int, int]:
        """FLOPs of K generated samples both ways, and of encoding K real ones."""
        with FlopCount() as both_ways:
            samples = self.generator(*inputs)
            torch.stack([feature.sum() for feature in self.encoder(samples).values()]).sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad(), FlopCount() as forward:
            self.encoder(samples)
        return both_ways.needed, forward.needed


def peak_flops(device: torch.device, override: float | None = None) -> float | None:
    """FLOP/s of `device`: `override`, else by the table; None where the table has no such device.

    Raises:
        ValueError: an override that is not positive.
    """
    if override is not None:
        if not 0 < override < float("inf"):
            raise ValueError(f"log.peak_flops must be positive and finite, or null for the table's, got {override}")
        return override
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)


def _on_meta(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without memory; the module itself stays as it is."""
    state = {name: value.to("meta") for name, value in module.named_buffers()}
    for name, value in module.named_parameters():
        state[name] = value.detach().to("meta").requires_grad_(value.requires_grad)
    return state
