"""The curves of a run are read at a glance, however many features it drifts in."""

import warnings

from PIL import Image

from domains.imagenet.pictures import save_curves


def test_features_do_not_crowd_out_the_curves(tmp_path):
    few = {"spread": 0.9, "grad_norm": 2.0, "drift_rms/0.02": 0.1, "drift_rms/0.2": 0.3}
    many = few | {f"drift_rms/layer{k}/{tau}": 0.1 for k in range(40) for tau in (0.02, 0.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where nothing is left for the axes
        for name, line in (("few", few), ("many", many)):
            save_curves(tmp_path / f"{name}.png", [{"step": step} | line for step in (10, 20)])
    assert (tmp_path / "few.png").read_bytes() == (tmp_path / "many.png").read_bytes()
    assert Image.open(tmp_path / "many.png").size[0] > 1000
