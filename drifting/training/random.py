"""Every random source that training draws from, as one thing: seeded together, saved together."""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from drifting.dealing import derived_seed


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU and all CUDA devices); `seed` in [0, 2^32)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(seed)


def generators_digest() -> str:
    """SHA-256 of where torch's global generator stands, to compare it between ranks."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


class RandomState:
    """The global generators' states as an object with state_dict and load_state_dict; Checkpoint includes one itself.

    Of the CUDA generators it is the current device's. A run continued on another kind of device draws other numbers.
    Every rank has its own; `alike` says that ranks are seeded alike and draw the same numbers.
    """

    def __init__(self, *, alike: bool = False) -> None:
        self._alike = alike
        self.dealing = ""  # what load_state_dicts did with the generators of new ranks, in words

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

    def load_state_dicts(self, states: Sequence[dict[str, Any]], *, rank: int, ranks: int) -> None:
        """On another number of ranks: those that were there continue, new ones are seeded from all saved states.

        Where ranks draw the same numbers, new ones draw them too.
        """
        saved = [state["torch"] for state in states]
        same = self._alike and all(torch.equal(saved[0], other) for other in saved[1:])
        new = f"generators of ranks {len(states)} to {ranks - 1}"
        how = "draw what the others draw" if same else "start from seeds derived from all that were saved"
        self.dealing = f"{new} {how}" if ranks > len(states) else "generators of surplus ranks end"
        if rank < len(states) or same:
            self.load_state_dict(states[min(rank, len(states) - 1)])
        else:
            seed_everything(derived_seed(saved, rank) % 2**32)
