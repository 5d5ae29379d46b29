"""What only a GPU can show. Without one, each file says so once and is skipped."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def refuse_waiting() -> Iterator[Callable[[], None]]:
    """Call it, and from then on an operation that makes the host wait for the device raises."""

    def refuse() -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    yield refuse
    torch.cuda.set_sync_debug_mode("default")
