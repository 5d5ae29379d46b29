"""Figures over guidance scales: a table, and the three plots of the paper's Figure 5."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the backend: there may be no display

Sweep = Mapping[float, Mapping[str, float]]
"""Guidance scale alpha -> figures by name."""


def row_name(label: str, alpha: float) -> str:
    """What the figures of a model at one guidance scale are called; `label` is empty where there is one model."""
    return f"{label}, alpha {alpha:g}" if label else f"alpha {alpha:g}"


def sweep_table(sweeps: Mapping[str, Sweep], beside: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """One line per model and guidance scale, the least distance of each column marked by a star; then `beside`."""
    rows = {row_name(label, alpha): sweep[alpha] for label, sweep in sweeps.items() for alpha in sorted(sweep)}
    names = list(next(iter(rows.values())))
    best = {name: min(figures[name] for figures in rows.values()) for name in names if is_distance(name)}
    width = 2 + max(12, *(len(name) for name in names))
    first = max(len(row) for row in (*rows, *(beside or {})))
    lines = [" " * first + "".join(f"{name:>{width}} " for name in names)]
    for row, figures in rows.items():
        cells = [f"{figures[name]:>{width}.4f}" + ("*" if figures[name] == best.get(name) else " ") for name in names]
        lines.append(f"{row:<{first}}" + "".join(cells))
    for row, figures in (beside or {}).items():
        lines.append(f"{row:<{first}}" + "".join(f"{figures[name]:>{width}.4f} " for name in names))
    return "\n".join(lines)


def is_distance(name: str) -> bool:
    """Whether less is better."""
    return name.startswith(("FID", "FD", "sFID", "sFD", "KID", "KD"))


def save_sweep(path: Path, sweeps: Mapping[str, Sweep], *, distance: str, score: str) -> None:
    """Plot distance over alpha, score over alpha, and score over distance: one line per entry of `sweeps`.

    Args:
        path: picture to write.
        sweeps: label of a model -> its figures.
        distance: name of the first figure, FID or FD(network).
        score: name of the second, IS or IS(network).
    """
    panels: Sequence[tuple[str, str]] = (("alpha", distance), ("alpha", score), (distance, score))
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    for axis, (across, up) in zip(axes, panels, strict=True):
        for label, sweep in sweeps.items():
            points = [{"alpha": alpha} | dict(figures) for alpha, figures in sorted(sweep.items())]
            axis.plot([point[across] for point in points], [point[up] for point in points], marker="o", label=label)
        axis.set(xlabel=across, ylabel=up)
        axis.spines[["top", "right"]].set_visible(False)
    if len(sweeps) > 1:
        axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
