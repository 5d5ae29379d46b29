"""The plain network is the generator, and a quick run measures what it says."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import generators
from benchmarks.generator_networks import TINY, awake, batch_of, compiled_copy, plain_copy
from benchmarks.generators import check_equal

WIDER = replace(TINY, hidden=48, heads=3, patch=4, channels=3, context_tokens=5, style_tokens=4, depth=3)


@pytest.mark.parametrize("cfg", [TINY, WIDER], ids=["tiny", "wider"])
def test_plain_network_returns_the_same_samples_and_gradients(cfg):
    model = awake(cfg, "cpu", seed=0)
    plain, batch = plain_copy(model), batch_of(cfg, 3, "cpu")
    samples = model(*batch)
    torch.testing.assert_close(plain(*batch), samples, rtol=2e-5, atol=2e-6)
    ours = torch.autograd.grad(samples.square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(plain(*batch).square().sum(), list(plain.parameters()))
    by_name = dict(zip(dict(plain.named_parameters()), theirs, strict=True))
    for (name, _), gradient in zip(model.named_parameters(), ours, strict=True):
        torch.testing.assert_close(by_name[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_networks_share_their_parameters():
    model = awake(TINY, "cpu", seed=0)
    ours = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for copy in (plain_copy(model), compiled_copy(model)):
        assert {name: parameter.data_ptr() for name, parameter in copy.named_parameters()} == ours


def test_a_network_that_differs_is_not_timed():
    model, other = awake(TINY, "cpu", seed=0), awake(TINY, "cpu", seed=0)
    batch, plain = batch_of(TINY, 2, "cpu"), plain_copy(model)
    assert check_equal({"ours": model, "plain PyTorch": plain}, batch)["ours"] < 2e-6
    nn.init.constant_(other.blocks[1].norm2.weight, 1.01)
    with pytest.raises(SystemExit, match="ours differs from the plain network"):
        check_equal({"ours": other, "plain PyTorch": plain}, batch)


def test_quick_run_leaves_table_json_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generators, "use_one_core", lambda cpu: 0)  # the other tests keep their cores
    monkeypatch.setattr(generators, "measure_training", lambda *_: {"stored": 4, "recomputed": 2})
    monkeypatch.setattr(generators, "measure_start", lambda *_: [{"whole": 1.0}])
    generators.main(["--quick", "--rounds", "2", "--root", str(tmp_path)])
    figures = json.loads((tmp_path / "generators.json").read_text())
    assert [(result["model"], result["batch"]) for result in figures["sampling"]] == [("tiny", 1), ("tiny", 2)]
    for result in figures["sampling"]:
        assert all(len(times) >= 2 and min(times) > 0 for times in result["seconds"].values())
        assert result["difference"]["ours"] < 2e-5
    assert figures["training_peak_bytes"] == {"stored": 4, "recomputed": 2}
    assert "500 evaluations (multiplied)" in capsys.readouterr().out
    assert (tmp_path / "generators.png").stat().st_size > 5_000


@pytest.mark.slow  # new processes import torch
def test_processes_measure_peaks_and_the_start(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    peaks = generators.measure_training("tiny", 64, 0)
    assert 2**20 < peaks["recomputed"] < peaks["stored"]
    start, _ = generators.measure_start("tiny", 2, 0)
    assert start["whole"] > start["import"] + start["load"] + start["sample"] > 0
