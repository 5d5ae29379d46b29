"""Copies of a state in CPU memory, so that training goes on while they are written."""

from typing import Any

import torch
from torch import Tensor

from drifting.training.pieces import KeyPath, map_tensors


class Staging:
    """Memory for one state at a time, used again for the next: fresh pages cost more than the copy itself."""

    def __init__(self) -> None:
        self._buffers: dict[KeyPath, Tensor] = {}

    def copy(self, tree: Any) -> Any:
        """`tree` with its tensors copied to the CPU, complete on return; the copy before this one is overwritten."""
        used: dict[KeyPath, Tensor] = {}

        def staged(path: KeyPath, tensor: Tensor) -> Tensor:
            buffer = self._buffers.get(path)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            used[path] = buffer
            return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

        copied = map_tensors(tree, staged)
        self._buffers = used
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # pinned memory is filled while the CPU goes on
        return copied
