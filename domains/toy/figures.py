"""The pictures: each figure as a still (PNG) of a few columns, and as a film (GIF) of every frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only: no window, no display needed

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from domains.toy.film import geometric_steps
from domains.toy.particles import TARGET, Track

DATA, GENERATED, INK = "#3a6ea5", "#ea6a20", "#333333"  # p blue, q orange, as in the paper
PARTICLE_COLUMNS = (0, 8, 20, 80)  # iterations that the paper's Fig. 3 shows
STILL_DPI, FILM_DPI = 100, 80

plt.rcParams.update({"font.size": 11, "axes.titlesize": 11, "text.color": INK, "axes.edgecolor": "#bbbbbb"})


@dataclass(frozen=True, slots=True)
class TrainingPicture:
    """What Fig. 4 shows of one target."""

    name: str
    data: Tensor  # [K, 2]
    frames: list[Tensor]  # each [K, 2], at `steps`
    steps: list[int]
    loss_steps: list[int]
    losses: list[float]  # squared drift, mean over samples and coordinates, at `loss_steps`
    loss_real: float  # the same of data against data: what remains when generated and real samples agree


def save_particle_figure(folder: Path, tracks: Sequence[Track]) -> list[Path]:
    """Write Fig. 3 to figure3.png and figure3.gif in `folder`: a row, or in the film a panel, per start."""
    last = len(tracks[0].positions) - 1
    columns = [iteration for iteration in PARTICLE_COLUMNS if iteration < last] + [last]
    still, grid = _panels(len(tracks), len(columns), width=2.7, height=2.2)
    for row, track in zip(grid, tracks, strict=True):
        row[0].set_ylabel(track.start)
        for axes, iteration in zip(row, columns, strict=True):
            _draw_modes(axes)
            _scatter(axes, track.positions[iteration], GENERATED)
        for share, height in ((track.upper_share, TARGET.height), (1 - track.upper_share, -TARGET.height)):
            row[-1].text(3.0, height, f"{share:.0%}", ha="right", va="center")
    for axes, iteration in zip(grid[0], columns, strict=True):
        axes.set_title(f"iteration {iteration}")
    _legend(still, "target p", "particles q")
    paths = [folder / "figure3.png", folder / "figure3.gif"]
    _save_still(paths[0], still)

    film, panels = _panels(1, len(tracks), width=3.2, height=2.9)
    dots = []
    for axes, track in zip(panels[0], tracks, strict=True):
        axes.set_title(track.start)
        _draw_modes(axes)
        dots.append(_scatter(axes, track.positions[0], GENERATED))
    caption = film.supxlabel("")

    def show(iteration: int) -> None:
        caption.set_text(f"iteration {iteration}")
        for dot, track in zip(dots, tracks, strict=True):
            dot.set_offsets(track.positions[iteration])

    _save_film(paths[1], film, show, geometric_steps(last, 36))
    return paths


def save_training_figure(folder: Path, pictures: Sequence[TrainingPicture]) -> list[Path]:
    """Write Fig. 4 to figure4.png and figure4.gif in `folder`: a row, or in the film a panel, per target."""
    steps = pictures[0].steps
    shown = [_nearest(steps, share * steps[-1]) for share in (0.0, 0.03, 0.2, 1.0)]
    still, grid = _panels(len(pictures), len(shown) + 2, width=2.3, height=2.4)
    for row, picture in zip(grid, pictures, strict=True):
        _draw_square(row[0], picture.data, DATA)
        row[0].set_ylabel(picture.name.replace("_", " "))
        for axes, index in zip(row[1:-1], shown, strict=True):
            _draw_square(axes, picture.frames[index], GENERATED)
        _draw_loss(row[-1], picture)
    for axes, title in zip(
        grid[0], ["data", *(f"step {steps[index]}" for index in shown), "drift $|V|^2$"], strict=True
    ):
        axes.set_title(title)
    grid[-1][-1].set_xlabel("step")
    levels = [level for picture in pictures for level in (*picture.losses, picture.loss_real)]
    decades = range(math.floor(math.log10(min(levels))), math.ceil(math.log10(max(levels))) + 1)
    for axes in grid[:, -1]:
        axes.set(ylim=(10.0 ** decades[0], 10.0 ** decades[-1]), yticks=[10.0**decade for decade in decades])
    grid[0][-1].legend(fontsize=9, frameon=False, handlelength=1.5)
    paths = [folder / "figure4.png", folder / "figure4.gif"]
    _save_still(paths[0], still)

    film, panels = _panels(1, len(pictures), width=3.6, height=3.6)
    dots = []
    for axes, picture in zip(panels[0], pictures, strict=True):
        axes.set_title(picture.name.replace("_", " "))
        _draw_square(axes, picture.data, DATA, alpha=0.25)
        dots.append(_scatter(axes, picture.frames[0], GENERATED))
    caption = film.supxlabel("")

    def show(index: int) -> None:
        caption.set_text(f"step {steps[index]}")
        for dot, picture in zip(dots, pictures, strict=True):
            dot.set_offsets(picture.frames[index])

    _save_film(paths[1], film, show, range(len(steps)))
    return paths


def _panels(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A grid [rows, columns] of empty axes, `width` x `height` inches each."""
    figure, grid = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], aspect="equal")
    return figure, grid


def _draw_modes(axes: Axes) -> None:
    """The two-mode density, filled contours."""
    x, y = torch.meshgrid(torch.linspace(-2.2, 3.2, 217), torch.linspace(-2.0, 2.2, 169), indexing="xy")
    density = TARGET.density(torch.stack([x, y], dim=-1))
    axes.contourf(x, y, density, levels=[0.05, 0.2, 0.5, 0.8, 1.1], cmap="Blues", vmin=-0.2, vmax=2.0)
    axes.set(xlim=(-2.2, 3.2), ylim=(-2.0, 2.2))


def _draw_square(axes: Axes, points: Tensor, color: str, alpha: float = 0.65) -> None:
    """Points [K, 2] on the board with a margin."""
    _scatter(axes, points, color, alpha)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25))


def _scatter(axes: Axes, points: Tensor, color: str, alpha: float = 0.65) -> PathCollection:
    return axes.scatter(points[:, 0], points[:, 1], s=4.0, color=color, alpha=alpha, linewidths=0.0)


def _draw_loss(axes: Axes, picture: TrainingPicture) -> None:
    """Loss on a log scale, and the level that two sets of data reach."""
    axes.set(aspect="auto", yscale="log", xlim=(0, picture.steps[-1]))
    axes.plot(picture.loss_steps, picture.losses, color=GENERATED, lw=1.0, label="generated to data")
    axes.axhline(picture.loss_real, color=DATA, ls="--", lw=1.2, label="data to data")
    axes.set_xticks([0, picture.steps[-1]])
    axes.tick_params(labelsize=9)
    axes.yaxis.tick_right()


def _legend(figure: Figure, data: str, generated: str) -> None:
    handles = [Line2D([], [], ls="", marker="o", color=color) for color in (DATA, GENERATED)]
    figure.legend(handles, [data, generated], loc="outside lower center", ncols=2, frameon=False)


def _nearest(steps: Sequence[int], wanted: float) -> int:
    return min(range(len(steps)), key=lambda index: abs(steps[index] - wanted))


def _save_still(path: Path, figure: Figure) -> None:
    figure.savefig(path, dpi=STILL_DPI)
    plt.close(figure)


def _save_film(path: Path, figure: Figure, show: Callable[[int], None], frames: Sequence[int]) -> None:
    """Write a looping GIF of `show(frame)` for every frame; it rests on the last one."""
    figure.set_dpi(FILM_DPI)
    canvas = FigureCanvasAgg(figure)
    images = []
    for frame in frames:
        show(frame)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
        images.append(pixels.quantize(colors=48, dither=Image.Dither.NONE))
    durations = [160] * (len(images) - 1) + [2500]  # milliseconds
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    plt.close(figure)
