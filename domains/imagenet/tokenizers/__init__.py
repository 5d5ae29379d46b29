"""Tokenizers: images to the latents in which a generator works, and back (paper Sec. 4: the Stable Diffusion VAE).

Shapes: K samples, images [K, 3, H, W] in [-1, 1], latents [K, c, H / r, W / r]; c = 4, r = 8 for Stable Diffusion.
A new kind is a subclass of `LatentTokenizer` and a line in `load_tokenizer`.
"""

from domains.imagenet.tokenizers.kl import KlTokenizer
from domains.imagenet.tokenizers.section import SD_VAE, TokenizerSection, load_tokenizer, missing_tokenizer
from domains.imagenet.tokenizers.taef2 import TinyTokenizer
from domains.imagenet.tokenizers.tokenizer import Identity, LatentTokenizer, PixelTokenizer, Tokenizer

__all__ = [
    "SD_VAE",
    "Identity",
    "KlTokenizer",
    "LatentTokenizer",
    "PixelTokenizer",
    "TinyTokenizer",
    "Tokenizer",
    "TokenizerSection",
    "load_tokenizer",
    "missing_tokenizer",
]
