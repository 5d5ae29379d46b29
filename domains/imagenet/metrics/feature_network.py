"""What a network must offer to measure images, and how the figures in its space are called."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

INCEPTION = "inception"


@dataclass(frozen=True, slots=True)
class Features:
    """Of k images, float32 on the CPU.

    pooled: [k, d], what FID, KID, precision and recall compare. spatial: [k, s], what sFID compares, or None. logits:
    [k, c], of the Inception score, or None.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class FeatureNetwork(Protocol):
    """Images to features. `name` stands in the name of every figure; `width` is d of the pooled features."""

    @property
    def name(self) -> str:
        """`inception` for the published network alone."""

    @property
    def width(self) -> int:
        """d of the pooled features [k, d]."""

    def features(self, images: Tensor) -> Features:
        """Features of images [k, C, H, W]: uint8, or float32 in [-1, 1] where the network allows it."""


# With the published Inception network: the names that readers of papers expect.
_PUBLISHED = {"FD": "FID", "sFD": "sFID", "IS": "IS", "KD": "KID", "precision": "precision", "recall": "recall"}


def figure_name(figure: str, network: str) -> str:
    """The name under which a figure may be told: "FD" is "FID" in the published Inception, else "FD(network)".

    Raises:
        ValueError: a figure that is none of FD, sFD, IS, KD, precision, recall.
    """
    if figure not in _PUBLISHED:
        raise ValueError(f"figure must be one of {', '.join(_PUBLISHED)}, got {figure!r}")
    return _PUBLISHED[figure] if network == INCEPTION else f"{figure}({network})"
