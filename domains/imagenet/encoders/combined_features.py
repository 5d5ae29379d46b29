"""Several encoders side by side."""

from collections.abc import Mapping

from torch import Tensor, nn

from domains.imagenet.frozen import FrozenModule, freeze


class CombinedFeatures(FrozenModule):
    """The features of several encoders of the same samples; the loss sums over all of them.

    Args:
        encoders: prefix -> encoder. A key of an encoder becomes `<prefix>_<key>`, and stays as it is for the prefix "".

    Raises:
        ValueError: no encoder.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders is empty: give at least one, {prefix: encoder}")
        self.prefixes = tuple(encoders)
        self.encoders = nn.ModuleList(freeze(encoder) for encoder in encoders.values())
        self.eval()

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, *S] -> {key: [K, F, D]}, in the order of the encoders.

        Raises:
            ValueError: two encoders return the same key.
        """
        features: dict[str, Tensor] = {}
        for prefix, encoder in zip(self.prefixes, self.encoders, strict=True):
            named = {f"{prefix}_{key}" if prefix else key: vectors for key, vectors in encoder(samples).items()}
            if twice := features.keys() & named.keys():
                raise ValueError(
                    f"the encoder of prefix {prefix!r} returns keys that another one has, too: {sorted(twice)}; "
                    "give it another prefix"
                )
            features |= named
        return features
