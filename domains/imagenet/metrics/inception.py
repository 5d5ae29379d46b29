"""The Inception-v3 network of FID, IS, sFID and KID: TensorFlow's of December 2015, in torch-fidelity's port.

Its published weights are the one file `FILE_NAME`, read from disk and never downloaded: only what has its SHA-256 is
called Inception. Pictures are brought to 299 x 299 in one of two ways, which give different FIDs:

    tf1          as TensorFlow 1 did, by pixel corners: ADM's evaluator, torch-fidelity
    half_pixel   by pixel centres: the drifting paper's code

A reference and what is compared with it need the same.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from domains.imagenet.frozen import FrozenModule, freeze
from domains.imagenet.metrics.feature_network import INCEPTION, Features
from domains.imagenet.missing import Missing
from drifting.training.errors import ConfigError

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
FILE_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
FILE_BYTES = 95_628_359
FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299
WIDTH = 2048  # of the pooled features
SPATIAL_CHANNELS = 7  # of TensorFlow's mixed_6/conv:0, 17 x 17 locations: 2023 numbers, about as many as pooled


def resize_tf1(images: Tensor) -> Tensor:
    """Float images [k, C, H, W] -> [k, C, 299, 299], output pixel i from input i H / 299."""
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(images, size=(SIDE, SIDE), align_corners=False)
    return resized


def resize_half_pixel(images: Tensor) -> Tensor:
    """Float images [k, C, H, W] -> [k, C, 299, 299], output pixel i from input (i + 1/2) H / 299 - 1/2."""
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


RESIZES: Mapping[str, Callable[[Tensor], Tensor]] = {"tf1": resize_tf1, "half_pixel": resize_half_pixel}


class Inception(FrozenModule):
    """Pooled features [k, 2048], spatial features [k, 2023] and logits without bias [k, 1008] of uint8 images.

    Args:
        weights: state of the network, complete.
        resize: `tf1` or `half_pixel`.
        name: `inception` for the published weights alone, see `load_inception`.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, resize: str, name: str) -> None:
        super().__init__()
        if resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
        self.name = name
        self.resize = resize
        network = freeze(_network(weights))
        self.classifier = network.fc
        self.width = int(network.fc.in_features)
        self.trunk = nn.Sequential(OrderedDict(child for child in network.named_children() if child[0] != "fc"))
        self._spatial = torch.empty(0)
        self.trunk.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS]

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Of uint8 images [k, 3, H, W], or grey ones [k, 1, H, W], whose channel is repeated.

        Raises:
            ValueError: another type or number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 [k, 3 or 1, H, W], got {images.dtype} {tuple(images.shape)}")
        weight = self.classifier.weight
        x = RESIZES[self.resize](images.expand(-1, 3, -1, -1).to(weight.device, weight.dtype))
        pooled = self.trunk((x - 128) / 128).flatten(1)
        # Locations before channels: the order of the published references.
        spatial = self._spatial.permute(0, 2, 3, 1).flatten(1)
        self._spatial = torch.empty(0)
        return Features(*(each.float().cpu() for each in (pooled, spatial, pooled @ weight.T)))


def load_inception(path: str | Path, *, resize: str) -> Inception:
    """The published network from its file.

    Raises:
        ConfigError: a file that is not the published one.
    """
    weights = torch.load(io.BytesIO(published_weights(path)), weights_only=True)
    return Inception(weights, resize=resize, name=INCEPTION)


def published_weights(path: str | Path) -> bytes:
    """The content of the published file.

    Raises:
        ConfigError: a file that is not the published one.
    """
    content = Path(path).expanduser().read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILE_SHA256:
        raise ConfigError(
            f"eval.inception={path} is not the published file, or damaged: SHA-256 {digest}, {len(content)} bytes; "
            f"expected {FILE_SHA256}, {FILE_BYTES} bytes. Download it again: {download_command(path)}"
        )
    return content


def missing_inception(path: str, setting: str = "eval.inception") -> list[Missing]:
    """The file, if it is not there."""
    if path and Path(path).expanduser().is_file():
        return []
    what = f"{path} does not exist" if path else "the file of the Inception network is not named"
    named = path or FILE_NAME
    return [Missing(setting, what, f"{download_command(named)}        then {setting}={named}")]


def download_command(path: str | Path) -> str:
    """What brings the file to `path`."""
    return f"curl -L --create-dirs -o {path} {FILE_URL}"


def _network(weights: Mapping[str, Tensor]) -> FeatureExtractorInceptionV3:
    # Its constructor unpickles a file without restriction, so it is given bytes that were written here.
    own = io.BytesIO()
    torch.save(dict(weights), own)
    own.seek(0)
    with torch.random.fork_rng(devices=[]):  # weights that are drawn before they are read
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=own)
