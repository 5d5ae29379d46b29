"""The command-line options that benchmarks share."""

import argparse
from pathlib import Path

from benchmarks.report import ROOT


def options(description: str | None, name: str, *, quick: str) -> argparse.ArgumentParser:
    """A parser with --quick and --root; `quick` says what the quick run is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: does it run?")
    parser.add_argument("--root", type=Path, default=ROOT, help=f"folder of {name}.json and {name}.png")
    return parser


def add_core(parser: argparse.ArgumentParser) -> None:
    """--cpu, for `use_one_core`."""
    parser.add_argument("--cpu", type=int, help="number of the core; default: the last")


def add_rounds(parser: argparse.ArgumentParser, *, least: int, seconds: float, of: str) -> None:
    """--seed, --rounds and --seconds of benchmarks that time rounds; `of` is what they time at a go."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=least, help="at least so many")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"more rounds until {of} has taken so long")
