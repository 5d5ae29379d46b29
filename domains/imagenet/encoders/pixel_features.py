"""The sample itself as features: the drifting loss without an encoder."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn


class PixelFeatures(nn.Module):
    """The flattened sample, and its patches if asked for.

    A whole image has many dimensions, in which a kernel sees little but blurred means; patches have few, and what
    stands in them is sharp. The image as a whole keeps them together.

    Args:
        patches: sides p of square patches without overlap; each place in the image is a problem of its own.

    Raises:
        ValueError: p < 1.
    """

    def __init__(self, patches: Sequence[int] = ()) -> None:
        super().__init__()
        for p in patches:
            if p < 1:
                raise ValueError(f"patches must be at least 1 pixel wide, got {p}")
        self.patches = tuple(patches)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, *S] -> {"global": [K, 1, prod S]}; of [K, C, H, W] also "patch_p" [K, H W / p^2, C p^2].

        Raises ValueError if patches do not fill the sample.
        """
        features = {"global": samples.flatten(1).unsqueeze(1)}
        for p in self.patches:
            if samples.ndim != 4 or samples.shape[-2] % p or samples.shape[-1] % p:
                raise ValueError(f"patches of {p} x {p} do not fill samples of shape {tuple(samples.shape[1:])}")
            features[f"patch_{p}"] = rearrange(samples, "k c (h p) (w q) -> k (h w) (c p q)", p=p, q=p)
        return features
