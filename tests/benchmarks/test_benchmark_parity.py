"""What benchmarks.parity prints is what was compared, and what is out of tolerance fails it."""

import json

import pytest
import torch

from benchmarks import parity
from benchmarks.parity import Comparison


def comparison(error: float, tolerance: float | None, name: str = "loss") -> Comparison:
    theirs = torch.tensor([1.0, -4.0])
    return Comparison("step", name, theirs + torch.tensor([4 * error, 0.0]), theirs, tolerance)


def run(monkeypatch, tmp_path, comparisons):
    monkeypatch.setattr(parity, "all_comparisons", lambda folder, quick: iter(comparisons))
    parity.main(["--root", str(tmp_path)])
    return json.loads((tmp_path / "parity.json").read_text())["comparisons"]


def test_errors_are_relative_to_the_largest_magnitude():
    assert comparison(0.25, 0.3).error == pytest.approx(0.25)
    zeros = Comparison("step", "bank", torch.full((2,), 0.5), torch.zeros(2), 0.0)
    assert zeros.error == 0.5 and not zeros.holds
    with pytest.raises(ValueError, match=r"ours is \(2,\), theirs \(3,\)"):
        _ = Comparison("step", "bank", torch.zeros(2), torch.zeros(3), 0.0).error


def test_table_json_and_picture_name_the_worst_of_a_group(monkeypatch, tmp_path, capsys):
    found = [comparison(0.125, 0.5), comparison(0.25, 0.3, "scale"), comparison(0.0625, 0.3, "total")]
    records = run(monkeypatch, tmp_path, found)
    assert [record["error"] for record in records] == pytest.approx([0.125, 0.25, 0.0625])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step"))
    assert row.split() == ["step", "3", "2.5e-01", "5.0e-01", "scale"]
    assert (tmp_path / "parity.png").stat().st_size > 5_000


def test_a_comparison_out_of_tolerance_fails_the_run(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"loss: error 1\.25e-01, tolerance 0\.1"):
        run(monkeypatch, tmp_path, [comparison(0.125, 0.1), comparison(9.0, None, "rounding alone")])


def test_a_missing_golden_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"gen_latent\.npz does not exist"):
        parity.main(["--goldens", str(tmp_path), "--root", str(tmp_path)])


def test_a_quick_run_needs_no_folder(tmp_path, capsys):
    parity.main(["--quick", "--goldens", str(parity.COMMITTED), "--root", str(tmp_path)])
    table = capsys.readouterr().out
    for group in ("generator latent: gradient norms", "train step: losses", "guidance scales", "queue: contents"):
        assert group in table
