"""The plain formulas of tests/core are what the benchmarks' own transcription is tested against too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "core"))
