"""Tables, files and machine facts."""

import json
import os

import pytest

from benchmarks.bar_chart import save_bars
from benchmarks.machine import facts, use_one_core
from benchmarks.measure import Quartiles
from benchmarks.report import print_table, save


def test_table_lines_up(capsys):
    print_table(["", "ms"], [["ours", "1.5"], ["transcription", "10.25"]])
    assert capsys.readouterr().out.splitlines() == [
        "                  ms",
        "ours             1.5",
        "transcription  10.25",
    ]


def test_json_names_the_machine(tmp_path):
    picture = save("speed", {"seed": 7}, tmp_path / "new")
    figures = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert picture == tmp_path / "new" / "speed.png"
    assert figures["seed"] == 7
    assert figures["machine"].keys() >= {"commit", "cpu", "cores", "torch", "jax", "drift-models"}
    assert facts()["cores"] == os.cpu_count()


def test_picture_leaves_out_what_was_not_measured(tmp_path):
    panels = {"time": {"ours": [1.0, Quartiles(0.9, 1.0, 1.2)], "jax": [None, 2.0]}, "memory": {"ours": [3.0, None]}}
    save_bars(tmp_path / "bars.png", ["small", "large"], panels, title="test")
    assert (tmp_path / "bars.png").stat().st_size > 5_000


def test_a_core_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit, match="--cpu must be one of"):
        use_one_core(10_000)
