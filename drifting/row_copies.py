"""Copies of whole samples: into rows of a store, and from CPU memory to a CUDA device while it computes.

Only pinned memory is copied asynchronously, and pinning is too dear for a store of gigabytes: two small pinned buffers
take turns instead. The CPU fills one while the device still reads the other, and a stream of their own keeps the copies
out of the compute that is queued before them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WIDEST = torch.complex128


def write_rows(store: Tensor, index: Tensor, rows: Tensor) -> None:
    """store[index] = rows, without a gradient; store [R, *S], contiguous, index [K], distinct, rows [K, *S]."""
    width = math.prod(store.shape[1:])
    store, rows = store.view(len(store), width), rows.detach().reshape(len(rows), width).contiguous()
    if width * store.element_size() % _WIDEST.itemsize == 0:
        # index_copy_ walks elements, not rows: in elements of 16 bytes it is as fast as a plain copy.
        offset = rows.storage_offset() * rows.element_size()
        if rows.data_ptr() % _WIDEST.itemsize or offset % _WIDEST.itemsize:
            rows = rows.clone()  # a view of wide elements needs aligned ones
        store, rows = store.view(_WIDEST), rows.view(_WIDEST)
    store.index_copy_(0, index, rows)


class StagedCopy:
    """Rows of one shape and type on their way to one CUDA device.

    Args:
        device: the CUDA device, with its index.
        row_shape: shape S of one row.
        dtype: type of the rows.
    """

    def __init__(self, device: torch.device, row_shape: Sequence[int], dtype: torch.dtype) -> None:
        self.device, self.row_shape, self.dtype = device, tuple(row_shape), dtype
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = 0
        self._buffers = [self._pinned(0), self._pinned(0)]
        # Of each buffer: the end of the last copy out of it.
        self._copied = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]

    def _pinned(self, rows: int) -> Tensor:
        return torch.empty(rows, *self.row_shape, dtype=self.dtype, pin_memory=True)

    def send(self, fill: Callable[[Tensor], object], rows: int) -> Tensor:
        """Let `fill` write rows into pinned memory and copy them without waiting for the copy.

        Args:
            fill: called once with a pinned tensor [rows, *S] whose values it must set.
            rows: number of rows.

        Returns:
            [rows, *S] on the device. Work that is queued later on the current stream finds the values there; another
            stream has to wait for the current one.
        """
        turn, self._turn = self._turn, 1 - self._turn
        # Two copies ago this buffer was sent; its memory must not change before that copy has ended.
        self._copied[turn].synchronize()
        if len(self._buffers[turn]) < rows:
            self._buffers[turn] = self._pinned(rows)
        staged = self._buffers[turn][:rows]
        fill(staged)

        consumer = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            # Allocated for the copying stream: the consumer's free memory may still be read by kernels that the copy
            # overtakes.
            sent = torch.empty(staged.shape, dtype=self.dtype, device=self.device)
            sent.copy_(staged, non_blocking=True)
            self._copied[turn].record(self._copies)
        consumer.wait_event(self._copied[turn])
        # Once freed, this memory must not serve the next copy before the consumer is done with it.
        sent.record_stream(consumer)
        return sent
