"""The curves of a run are read at a glance, however many features it drifts in."""

import math
import warnings

import torch
from PIL import Image

from domains.imagenet.pictures import save_curves
from domains.imagenet.train import convergence
from drifting import DriftLoss
from drifting.training.world import World


def test_features_do_not_crowd_out_the_curves(tmp_path):
    few = {"spread": 0.9, "grad_norm": 2.0, "drift_rms/0.02": 0.1, "drift_rms/0.2": 0.3}
    many = few | {f"drift_rms/layer{k}/{tau}": 0.1 for k in range(40) for tau in (0.02, 0.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where nothing is left for the axes
        for name, line in (("few", few), ("many", many)):
            save_curves(tmp_path / f"{name}.png", [{"step": step} | line for step in (10, 20)])
    assert (tmp_path / "few.png").read_bytes() == (tmp_path / "many.png").read_bytes()
    assert Image.open(tmp_path / "many.png").size[0] > 1000


def test_one_positive_has_no_spread_to_compare_with(tmp_path):
    torch.manual_seed(0)
    gen, one, many = torch.randn(3, 4, 2), torch.randn(3, 1, 2), torch.randn(3, 400, 2)
    found = {}
    for name, pos in {"one": one, "many": many}.items():
        terms = {"pixels": DriftLoss().terms(gen, pos)}
        found[name] = float(convergence(terms, [0.02, 0.05, 0.2], World(torch.device("cpu")), 1.0)["spread"])
    assert math.isnan(found["one"])
    assert 0.5 < found["many"] < 1.5
    lines = [{"step": step, "drift_rms/0.05": 0.1, "spread": None, "grad_norm": 1.0} for step in (10, 20)]
    save_curves(tmp_path / "curves.png", lines)
    assert (tmp_path / "curves.png").exists()
