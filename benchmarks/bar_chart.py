"""Grouped bars, one panel per quantity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from benchmarks.measure import Quartiles

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

Value = float | Quartiles | None
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")  # told apart by colour-blind readers too


def save_bars(
    path: Path, groups: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Value]]], *, title: str
) -> None:
    """Write a PNG with one panel per entry {axis label: {series: a value per group, None where there is none}}.

    Every panel has the same series, five at most.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 3.6 * len(panels)), layout="constrained", squeeze=False)
    for axis, (label, series) in zip(axes[:, 0], panels.items(), strict=True):
        width = 0.84 / len(series)
        for s, values in enumerate(series.values()):
            present = [(g + (s + 0.5) * width - 0.42, value) for g, value in enumerate(values) if value is not None]
            colour = COLOURS[s % len(COLOURS)]
            for place, value in present:
                spread = value if isinstance(value, Quartiles) else Quartiles(value, value, value)
                axis.bar(place, spread.median, 0.92 * width, color=colour)
                axis.vlines(place, spread.low, spread.high, colors="#333333", lw=1)
                text = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 7}
                axis.annotate(f"{spread.median:.2f}", (place, spread.high), **text)
        axis.set_xticks(range(len(groups)), groups, fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.margins(y=0.14)
        axis.spines[["top", "right"]].set_visible(False)
    names = next(iter(panels.values()))
    handles = [
        Patch(color=colour, label=name) for name, colour in zip(names, COLOURS, strict=False)
    ]  # colours are left over
    columns = len(COLOURS) if sum(map(len, names)) < 80 else 3  # what fits the width
    axes[0, 0].legend(
        handles=handles, frameon=False, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)
