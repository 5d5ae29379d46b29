"""How good a masked auto-encoder is on images it has not seen: what it reconstructs, and what its features know.

held_out/error            squared error at hidden positions, summed over channels
held_out/mean_error       the same of the training images' mean in place of the reconstruction
held_out/linear_accuracy  of a linear classifier of the last map's mean, fitted to training images
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from domains.imagenet.data.image_data import DataError, ImageData, spread_over, to_float
from domains.imagenet.linear_probe import linear_accuracy
from domains.imagenet.mae import MaskedAutoencoder, to_grid
from domains.imagenet.mae_training import MaeEvalSection

ERROR, MEAN_ERROR, LINEAR = "held_out/error", "held_out/mean_error", "held_out/linear_accuracy"


class MaeEvaluation:
    """The figures of an auto-encoder, again and again on the same images and masks.

    Args:
        train: to which the linear classifier is fitted, and whose mean image is compared with.
        held_out: never trained on.
        section: how many of them.
        device: of the auto-encoder.

    Raises:
        DataError: the two sets have other shapes or classes.
    """

    def __init__(self, train: ImageData, held_out: ImageData, section: MaeEvalSection, device: torch.device) -> None:
        for name in ("sample_shape", "classes"):
            ours, theirs = getattr(train, name), getattr(held_out, name)
            if ours != theirs:
                raise DataError(f"data.validation must have the {name} of data.path, {ours}, got {theirs}")
        self.train, self.held_out, self.section, self.device = train, held_out, section, device

    @torch.no_grad()
    def figures(self, mae: MaskedAutoencoder) -> dict[str, float]:
        """All of them, by the names above."""
        source = torch.Generator(self.device).manual_seed(0)
        mean = to_grid(self._mean_image, mae.cfg)
        error, mean_error, count = 0.0, 0.0, 0
        for images, _ in self._parts(self.held_out, self.section.images):
            error += float(mae(images, generator=source).reconstruction.sum())
            mean_error += float((to_grid(images, mae.cfg) - mean).square().sum(1).mean((1, 2)).sum())
            count += len(images)
        figures = {ERROR: error / count, MEAN_ERROR: mean_error / count}
        if self.section.probe_images:
            known = self._features(mae, self.train, self.section.probe_images)
            unseen = self._features(mae, self.held_out, self.section.images)
            figures[LINEAR] = linear_accuracy(*known, *unseen, len(self.train.classes))
        return figures

    @cached_property
    def _mean_image(self) -> Tensor:
        """[1, C, H, W]."""
        sums, count = [], 0
        for images, _ in self._parts(self.train, self.section.images):
            sums.append(images.sum(0, keepdim=True))
            count += len(images)
        return torch.cat(sums).sum(0, keepdim=True) / count

    def _features(self, mae: MaskedAutoencoder, data: ImageData, most: int) -> tuple[Tensor, Tensor]:
        """Means of the last map [N, D], nothing hidden, and labels [N]."""
        pooled: list[Tensor] = []
        labels: list[Tensor] = []
        # The whole network runs, as its weights may be shared out over ranks, which only its own call gathers.
        hook = mae.encoder.register_forward_hook(
            lambda *call: pooled.append(call[2][mae.last_map].mean((2, 3)).float())
        )
        try:
            for images, classes in self._parts(data, most):
                grid = to_grid(images, mae.cfg)
                mae(images, mask=torch.zeros_like(grid[:, :1], dtype=torch.bool))
                labels.append(classes.to(self.device))
        finally:
            hook.remove()
        return torch.cat(pooled), torch.cat(labels)

    def _parts(self, data: ImageData, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [n, C, H, W] and labels [n], evenly spread over the set, so that every class is there."""
        for part in spread_over(len(data), most).split(self.section.batch):
            yield to_float(data.read(part)).to(self.device), data.labels[part]
