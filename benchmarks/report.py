"""What every benchmark leaves behind: a table on the screen and JSON beside its picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import facts
from drifting.training.atomic_file import replace_text

ROOT = Path("runs/benchmarks")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]), flush=True)


def save(name: str, figures: dict, root: Path = ROOT) -> Path:
    """Write runs/benchmarks/<name>.json: the machine and the figures; where the picture <name>.png belongs."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.json"
    replace_text(path, json.dumps({"machine": facts(), **figures}, indent=1) + "\n")
    print(f"\nwritten to {path} and {path.with_suffix('.png')}")
    return path.with_suffix(".png")
