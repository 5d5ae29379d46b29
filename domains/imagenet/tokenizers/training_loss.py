"""The loss that trains a small KL autoencoder (`train_tokenizer`).

    loss = mean |x - y| + e sum_s mean |grad x_s - grad y_s| + k KL

x the image, y what is decoded of a sample of its posterior; x_s and y_s averaged over s x s squares, s = 1, 2, 4, and
grad their differences between neighbours, along rows and columns. The second term stands where larger autoencoders have
a perceptual distance and an adversary, whose networks need weights from elsewhere: it weighs edges at three scales, and
keeps images from getting blurred. KL is that of the posterior to a standard normal, a mean over the latents' numbers.

Shapes: K samples, images [K, 3, H, W] in [-1, 1], latents [K, c, h, w].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from domains.imagenet.tokenizers.small_kl import SmallKl

SCALES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class TokenizerLoss:
    """Losses of each sample [K]; `loss` carries the gradient, the rest is detached."""

    loss: Tensor
    absolute: Tensor  # mean |x - y|
    edges: Tensor  # sum over scales
    kl: Tensor
    squared: Tensor  # mean (x - y)^2, y clipped to [-1, 1]


class TokenizerTraining(nn.Module):
    """An autoencoder and its loss as one module, for the wrappers of many ranks; the module is taken over.

    Args:
        autoencoder: a `SmallKl`, or one of the diffusers library.
        edge_weight: e.
        kl_weight: k.
    """

    def __init__(self, autoencoder: "AutoencoderKL | SmallKl", edge_weight: float, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.edge_weight, self.kl_weight = edge_weight, kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> TokenizerLoss:
        """Images [K, 3, H, W] and standard normal noise [K, c, h, w] -> losses."""
        posterior = self.autoencoder.encode(images).latent_dist
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise.to(posterior.mean.dtype)).sample
        difference = decoded.float() - images
        absolute = difference.abs().mean((1, 2, 3))
        edges = edge_difference(difference)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3))
        loss = absolute + self.edge_weight * edges + self.kl_weight * kl
        squared = (decoded.detach().float().clamp(-1, 1) - images).square().mean((1, 2, 3))
        return TokenizerLoss(loss, absolute.detach(), edges.detach(), kl.detach(), squared)


def edge_difference(difference: Tensor) -> Tensor:
    """sum_s mean |grad d_s| of d = y - x, [K, C, H, W] -> [K]; scales larger than half the sides are left out.

    Averaging and differences are linear, so that the difference of the gradients is the gradient of the difference.
    """
    total = difference.new_zeros(len(difference))
    for scale in SCALES:
        if min(difference.shape[2:]) < 2 * scale:
            break
        pooled = F.avg_pool2d(difference, scale) if scale > 1 else difference
        total = total + pooled.diff(dim=2).abs().mean((1, 2, 3)) + pooled.diff(dim=3).abs().mean((1, 2, 3))
    return total


def peak_signal_to_noise(squared: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors [K] of images in [-1, 1] (a range of 2); [K]."""
    return 10 * torch.log10(4 / squared)
