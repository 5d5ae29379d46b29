"""Features of decoded latents: latent generators with an encoder of pixels (paper Table 3: SimCLR, MoCo-v2)."""

import torch
from torch import Tensor, nn

from domains.imagenet.frozen import FrozenModule, freeze, run
from domains.imagenet.tokenizers import Tokenizer


class DecodedFeatures(FrozenModule):
    """A pixel encoder behind the decoder of the tokenizer; gradients pass through both to the latents.

    `global`, if the encoder has it, is the decoded image. For the drift of the latents themselves combine:
    `CombinedFeatures({"": PixelFeatures(), "moco": DecodedFeatures(tokenizer, encoder)})`.

    Args:
        tokenizer: whose decoder turns scaled latents into images.
        encoder: of images in [-1, 1].
        chunk: so many latents are decoded at a time; None is all. The working memory of the decoder, some GB for each
            256 x 256 image that needs a gradient, is that of one chunk if `checkpoint` is on or no gradient is needed.
        checkpoint: keep only the latents for the backward pass, and decode again there, chunk by chunk.

    Raises:
        ValueError: chunk < 1.
    """

    def __init__(
        self, tokenizer: Tokenizer, encoder: nn.Module, *, chunk: int | None = None, checkpoint: bool = False
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, or None for all at a time, got {chunk}")
        self.tokenizer, self.encoder = freeze(tokenizer), freeze(encoder)
        self.chunk, self.checkpoint = chunk, checkpoint
        self.eval()

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Scaled latents [K, c, h, w] -> the encoder's {key: [K, F, D]}."""
        parts = torch.split(samples, self.chunk or max(len(samples), 1))
        images = torch.cat([run(self.tokenizer.decode, part, self.checkpoint) for part in parts])
        features: dict[str, Tensor] = self.encoder(images)
        return features
