"""The sample itself as a feature: the drifting loss without an encoder."""

from torch import Tensor, nn


class PixelFeatures(nn.Module):
    """The flattened sample as the only feature: the drifting loss without an encoder."""

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, *S] -> {"global": [K, 1, prod S]}."""
        return {"global": samples.flatten(1).unsqueeze(1)}
