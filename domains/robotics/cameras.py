"""The visual encoder of Diffusion Policy for one camera: robomimic's visual core on crops, trained with the policy.

ResNet-18 without its head, spatial softmax to K points, a linear layer. Batch norms become group norms: running
statistics and averages of weights do not go together.
Shapes: N images, S pixels of a side, c of a crop, F features.
"""

import contextlib
import io
import warnings

import torch
from torch import Tensor, nn

from domains.robotics.config import ImageConfig
from drifting.training.errors import ConfigError

CHANNELS_PER_GROUP = 16


class CameraEncoder(nn.Module):
    """Images uint8 [N, S, S, 3] to features [N, F]."""

    def __init__(self, side: int, config: ImageConfig) -> None:
        super().__init__()
        if config.crop > side:
            raise ConfigError(
                f"policy.image.crop must be at most {side}, the side of the task's images, got {config.crop}"
            )
        self.side, self.crop = side, config.crop or side
        self.layers = _visual_core(self.crop, config)

    def forward(self, images: Tensor, where: Tensor | None = None) -> Tensor:
        """Images [N, S, S, 3] uint8, `where` the crops lie [N, 2] in [0, 1), in the middle if None -> [N, F].

        Raises:
            ValueError: images of another size or type.
        """
        if images.shape[1:] != (self.side, self.side, 3) or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [N, {self.side}, {self.side}, 3], got {images.dtype} {tuple(images.shape)}"
            )
        cropped = crop(images, self.crop, where)
        features: Tensor = self.layers(cropped.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return features


def crop(images: Tensor, size: int, where: Tensor | None = None) -> Tensor:
    """Squares of `size` pixels out of images [N, S, S, ...]; `where` [N, 2] in [0, 1) is the upper left corner."""
    places = images.shape[1] - size + 1
    count, device = len(images), images.device
    if where is None:
        corner = torch.full((count, 2), places // 2, device=device)
    else:
        corner = (where * places).long().clamp(max=places - 1)
    span = torch.arange(size, device=device)
    rows, columns = (corner[:, axis, None] + span for axis in (0, 1))
    return images[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _visual_core(side: int, config: ImageConfig) -> nn.Module:
    """Images [N, 3, side, side] to [N, F]; ConfigError if robomimic is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on files that only its own commands need
            from robomimic.models.obs_core import VisualCore
    except ImportError as error:
        raise ConfigError(f"image observations need robomimic ({error}): pip install robomimic==0.3.0") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by an old name of an argument
        core = VisualCore(
            input_shape=[3, side, side],
            backbone_class="ResNet18Conv",
            backbone_kwargs={"pretrained": False, "input_coord_conv": False},
            pool_class="SpatialSoftmax",
            pool_kwargs={
                "num_kp": config.keypoints,
                "learnable_temperature": False,
                "temperature": 1.0,
                "noise_std": 0.0,
            },
            feature_dimension=config.features,
        )
    # The core names its parts twice; weights are saved under one name each.
    layers: nn.Module = core.nets
    _group_norms(layers)
    return layers


def _group_norms(module: nn.Module) -> None:
    """Put a group norm in place of every batch norm below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(child.num_features // CHANNELS_PER_GROUP, child.num_features))
        else:
            _group_norms(child)
