"""Every random source that training draws from, as one thing: seeded together, saved together."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU and all CUDA devices); `seed` in [0, 2^32)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(seed)


class RandomState:
    """The global generators' states as an object with state_dict and load_state_dict; Checkpoint includes one itself.

    Of the CUDA generators it is the current device's. A run continued on another kind of device draws other numbers.
    """

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; "cuda" is None where CUDA is not in use."""
        _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
        return {
            "python": random.getstate(),
            "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue every generator where `state` was taken."""
        random.setstate(state["python"])
        keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
