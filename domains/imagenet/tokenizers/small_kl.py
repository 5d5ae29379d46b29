"""A small KL autoencoder without norms, for the tokenizers that `train_tokenizer` makes.

    moments = conv(blocks(conv(squares of pixels)))        image = pixels of conv(blocks(conv(z)))
    block(x) = x + conv(silu(conv(silu(x))))               the last convolution begins at zero

Squares of p x p pixels become channels first: all convolutions work at the size of the latents, where they see far and
cost little. There is no norm: small autoencoders with group norms lose brightness and contrast in them (after a minute
on one core, 20.1 dB with them and 22.0 without, all else equal).
Shapes: K samples, images [K, 3, H, W] in [-1, 1], moments [K, 2 c, H / p, W / p], z [K, c, H / p, W / p].
"""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """The identity when it is fresh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[K, width, h, w] -> the same shape."""
        update: Tensor = self.last(F.silu(self.first(F.silu(x))))
        return x + update


class SmallKl(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Encodes and decodes as `AutoencoderKL` of diffusers does, and is stored as its models are.

    Args:
        latent_channels: c.
        patch: p, the ratio of the sides of images and latents.
        width: channels of the convolutions.
        blocks: residual blocks of the encoder, and as many of the decoder.
        scaling_factor, shift_factor: latent = (z - shift) scale, measured after training.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 4,
        patch: int = 4,
        width: int = 64,
        blocks: int = 3,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        pixels = 3 * patch**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(pixels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.Conv2d(width, 2 * latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Images [K, 3, H, W], sides divisible by p -> their posteriors, `.latent_dist`."""
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self.encoder(x)))

    def decode(self, z: Tensor) -> DecoderOutput:
        """z [K, c, h, w] -> images [K, 3, p h, p w], `.sample`."""
        return DecoderOutput(sample=self.decoder(z))
