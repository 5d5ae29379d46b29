"""The numbers beside the figures: results.json, and the tables that the command prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from domains.toy.particles import Track
from drifting.training.atomic_file import replace_text


@dataclass(frozen=True, slots=True)
class Learnt:
    """How well one target of Fig. 4 was learnt; `real` stands for as many fresh samples of the data."""

    target: str
    steps: int
    seconds: float  # of the training, all targets together
    distance: float  # energy distance, generated to data
    distance_real: float
    covered: int  # regions with at least half their fair share
    regions: int
    inside: float  # share of samples in any region
    inside_real: float


def save_results(path: Path, tracks: Sequence[Track], learnt: Sequence[Learnt]) -> Path:
    """Write the numbers of both figures as JSON; returns `path`."""
    ends = [{key: getattr(t, key) for key in ("start", "upper_share", "distance", "distance_real")} for t in tracks]
    content = {"figure3": ends, "figure4": [asdict(row) for row in learnt]}
    replace_text(path, json.dumps(content, indent=2) + "\n")
    return path


def summary(tracks: Sequence[Track], learnt: Sequence[Learnt]) -> str:
    """Both tables as text."""
    moved = table(
        ["start", "upper : lower mode", "energy distance", "real to real"],
        *([t.start, _shares(t.upper_share), f"{t.distance:.4f}", f"{t.distance_real:.4f}"] for t in tracks),
    )
    trained = table(
        ["target", "steps", "seconds", "energy distance", "real to real", "covered", "inside (data)"],
        *(
            [
                r.target,
                str(r.steps),
                f"{r.seconds:.0f}",
                f"{r.distance:.4f}",
                f"{r.distance_real:.4f}",
                f"{r.covered} of {r.regions}",
                f"{r.inside:.0%} ({r.inside_real:.0%})",
            ]
            for r in learnt
        ),
    )
    return (
        f"\nFigure 3: {tracks[0].positions.shape[1]} particles, {len(tracks[0].positions) - 1} iterations\n{moved}\n"
        f"\nFigure 4: one pass of an MLP; both targets are trained together\n{trained}\n"
    )


def table(*rows: Sequence[str]) -> str:
    """Lines with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _shares(upper: float) -> str:
    return f"{upper:.0%} : {1 - upper:.0%}"
