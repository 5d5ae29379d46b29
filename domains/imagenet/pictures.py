"""Pictures of a run: sample sheets, real beside generated, and the curves that tell convergence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the backend: there may be no display

SMALL = 32  # image pixels: a sheet enlarges what is smaller
GAP = 1  # image pixels between two images


def sheet(images: Tensor, columns: int) -> np.ndarray:
    """Images [K, C, H, W] in [-1, 1] row by row; uint8 [h, w], dark on white, for C = 1, [h, w, 3] for C = 3."""
    count, channels, height, width = images.shape
    inked = -images if channels == 1 else images
    rows = -(-count // columns)
    canvas = torch.ones(channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for k, image in enumerate(inked):
        top = GAP + (k // columns) * (height + GAP)
        left = GAP + (k % columns) * (width + GAP)
        canvas[:, top : top + height, left : left + width] = image
    enlarge = max(1, SMALL // height)
    return to_uint8(canvas).repeat(enlarge, axis=0).repeat(enlarge, axis=1)


def to_uint8(image: Tensor) -> np.ndarray:
    """Image [C, H, W] in [-1, 1], clipped -> uint8 [H, W] for C = 1, [H, W, 3] for C = 3."""
    pixels: np.ndarray = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def save_image(path: Path, image: Tensor) -> None:
    """Write one image [C, H, W] in [-1, 1] as it is: a PNG of H x W pixels, grey or RGB."""
    Image.fromarray(to_uint8(image)).save(path)


def save_sheet(path: Path, images: Tensor, columns: int = 10) -> None:
    """Write a sheet as PNG."""
    Image.fromarray(sheet(images, columns)).save(path)


def save_comparison(path: Path, titled: Sequence[tuple[str, Tensor]], columns: int = 10) -> None:
    """Sheets side by side under their titles."""
    sheets = [sheet(images, columns) for _, images in titled]
    height = max(1.0, *(4.2 * pixels.shape[0] / pixels.shape[1] for pixels in sheets))
    figure, axes = plt.subplots(1, len(titled), figsize=(4.2 * len(titled), height + 0.4), layout="constrained")
    for axis, (title, _), pixels in zip(np.atleast_1d(axes), titled, sheets, strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_curves(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Drift RMS per temperature, spread against real and gradient norm over the steps of metrics.jsonl."""
    steps = [line["step"] for line in lines]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    drift_keys = [key for key in lines[-1] if key.startswith("drift_rms/") and key.count("/") == 1]  # not by feature
    for key in drift_keys:
        axes[0].plot(steps, [line.get(key) for line in lines], label=f"temperature {key.removeprefix('drift_rms/')}")
    axes[0].set(title="drift RMS before normalisation", yscale="log")
    axes[0].legend(frameon=False)
    axes[1].plot(steps, [line["spread"] for line in lines], color="tab:green")
    axes[1].axhline(1, color="grey", linewidth=0.8, linestyle="--")
    axes[1].set(title="within-class spread, generated / real")
    axes[2].plot(steps, [line["grad_norm"] for line in lines], color="tab:red")
    axes[2].set(title="gradient norm before clipping", yscale="log")
    for axis in axes:
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
