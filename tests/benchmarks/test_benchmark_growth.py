"""The exponent fit on costs of known growth, and a whole quick run."""

import json

import pytest

from benchmarks import growth


def test_fit_finds_the_exponent_of_a_power():
    sizes = [2, 4, 8, 16, 32]
    exponent, factor = growth.fitted_power(sizes, [0.5 * size**1.75 for size in sizes])
    assert (exponent, factor) == pytest.approx((1.75, 0.5))


def test_fixed_costs_do_not_reach_the_fit():
    sizes = [2**i for i in range(10)]
    exponent, _ = growth.fitted_power(sizes, [100.0] * 5 + [float(size) for size in sizes[5:]])
    assert exponent == pytest.approx(1.0)


def test_fit_averages_noise():
    sizes = [2**i for i in range(1, 41)]
    noisy = [size**2 * (1.1 if i % 2 else 0.9) for i, size in enumerate(sizes)]
    assert growth.fitted_power(sizes, noisy)[0] == pytest.approx(2.0, abs=0.01)


def test_quick_run_leaves_table_json_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "use_one_core", lambda cpu: 0)  # the other tests keep their cores
    growth.main(["--quick", "--rounds", "2", "--root", str(tmp_path)])
    figures = json.loads((tmp_path / "growth.json").read_text())
    assert figures["seed"] == 0
    assert figures["machine"]["torch"]
    for axis, sizes in growth.QUICK_SIZES.items():
        points = figures["axes"][axis]["points"]
        assert [point["size"] for point in points] == list(sizes)
        assert all(len(point["seconds"][name]) >= 2 for point in points for name in growth.COMPARED)
    memory = figures["axes"]["B"]["exponent_and_factor"]["ours"]["memory"]
    assert memory[0] == pytest.approx(1.0, abs=0.05)  # problems share nothing
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "G (generated samples), with B = 4" in capsys.readouterr().out
