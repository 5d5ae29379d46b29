"""A picture of any size to a square of pixels: one function for the same crop every time, one for a random one.

Both take and give what PIL decodes, as uint8 [3, S, S]; what is random comes from the generator given.
"""

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

SCALE = (0.2, 1.0)  # of a random crop: its share of the picture's area (paper's code, pixel recipes)
RATIO = (3 / 4, 4 / 3)  # width over height
ATTEMPTS = 10  # crops that do not fit into the picture are drawn again so often


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """The centre square at side `size`, as ADM prepares ImageNet (arXiv 2105.05233): [3, S, S] uint8.

    The picture is halved by a box filter while its short side is at least twice `size`, brought to it bicubically, and
    cropped at the centre, which ends on the whole pixel before.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return _pixels(image.crop((left, top, left + size, top + size)))


def random_crop(image: Image.Image, size: int, generator: torch.Generator) -> Tensor:
    """A random part of the picture at side `size`, bicubic: [3, S, S] uint8.

    Its area is a uniform share in `SCALE` of the picture's, the logarithm of its width over height uniform in that of
    `RATIO`; where `ATTEMPTS` of them do not fit, it is the largest centre part of an allowed ratio.
    """
    top, left, height, width = _random_box(image.width, image.height, generator)
    # Antialiasing is what PIL always does.
    part = functional.resized_crop(
        image, top, left, height, width, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return _pixels(part)


def _random_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part."""
    shares, ratios, tops, lefts = torch.rand(4, ATTEMPTS, generator=generator, dtype=torch.float64).tolist()
    low, high = (math.log(ratio) for ratio in RATIO)
    for share, ratio, top, left in zip(shares, ratios, tops, lefts, strict=True):
        area = width * height * (SCALE[0] + share * (SCALE[1] - SCALE[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _pixels(image: Image.Image) -> Tensor:
    return functional.pil_to_tensor(image)
