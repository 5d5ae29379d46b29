"""A frozen module as part of a checkpoint: not its weights, but the refusal to continue with other ones."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Fingerprint:
    """SHA-256 of a module's weights; give it to `Checkpoint` for every frozen network that the loss depends on."""

    def __init__(self, module: nn.Module) -> None:
        digest = hashlib.sha256()
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.sha256 = digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """The digest."""
        return {"sha256": self.sha256}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the checkpoint was made with other weights; changes nothing."""
        if state["sha256"] != self.sha256:
            raise ValueError(
                "the frozen network has other weights than when this run began; restore them or choose another run.name"
            )
