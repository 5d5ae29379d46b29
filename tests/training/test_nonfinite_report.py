"""One process: which feature and temperature a NaN came from, and scalars by feature. Ranks: tests/distributed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from drifting import DriftLoss, FeatureDriftLoss
from drifting.training.drift_figures import drift_rms_by_feature
from drifting.training.errors import NonFiniteError
from drifting.training.metrics_log import MetricsLog, read_metrics
from drifting.training.nonfinite_report import naming_features, nonfinite_report

TAUS = (0.05, 0.2)


class Views(nn.Module):
    """Feature b is NaN where the first coordinate is large."""

    def forward(self, x):
        return {
            "a": x[:, None],
            "b": (x * torch.where(x[:, :1] > 100, torch.nan, 1.0))[:, None],
            "c": x.tanh()[:, None],
        }


def terms(gen_spoilt=False, pos_spoilt=False):
    rng = torch.Generator().manual_seed(0)
    gen, pos = torch.randn(2, 6, 5, generator=rng), torch.randn(2, 7, 5, generator=rng)
    gen[1, 3, 0] += 1000 * gen_spoilt
    pos[0, 2, 0] += 1000 * pos_spoilt
    return FeatureDriftLoss(Views(), DriftLoss(TAUS)).terms(gen.requires_grad_(), pos)


def test_finite_terms_give_no_report():
    assert nonfinite_report(terms(), TAUS) == ""


def test_feature_temperatures_and_samples_are_named():
    report = nonfinite_report(terms(gen_spoilt=True), TAUS)
    assert report == "Not finite: feature b (all temperatures), from generated features on rank 0."
    assert "from positive features on rank 0" in nonfinite_report(terms(pos_spoilt=True), TAUS)


def test_one_temperature_alone_is_named():
    found = terms()
    found["c"] = replace(found["c"], drift_rms=torch.tensor([1.0, torch.inf]))
    report = nonfinite_report(found, TAUS)
    assert report.startswith(
        "Not finite: feature c (temperature 0.2), though generated and positive features are finite"
    )


def test_many_features_are_counted():
    found = terms()
    bad = replace(found["a"], drift_rms=torch.full((2,), torch.nan))
    report = nonfinite_report({f"f{i}": bad for i in range(9)}, TAUS)
    assert report.endswith("; and 5 more of 9 features.")


def test_the_error_of_the_step_gets_the_report():
    with (
        pytest.raises(NonFiniteError, match=r"step 7: the loss is nan\. Not finite: feature b \(all temperatures\)"),
        naming_features(lambda: [terms(), terms(gen_spoilt=True)], TAUS),
    ):
        raise NonFiniteError("step 7: the loss is nan.")
    with pytest.raises(NonFiniteError, match=r"^the gradient$"), naming_features(lambda: [terms()], TAUS):
        raise NonFiniteError("the gradient")
    with pytest.raises(KeyError), naming_features(lambda: [terms(), terms(gen_spoilt=True)], TAUS):
        raise KeyError


def test_drift_rms_of_every_feature_and_temperature_reaches_the_log(tmp_path):
    found = terms()
    figures = drift_rms_by_feature(found, TAUS)
    assert list(figures) == [f"drift_rms/{key}/{tau}" for key in "abc" for tau in ("0.05", "0.2")]
    with MetricsLog(tmp_path, total=1) as log:
        log.write(1, figures)
    line = read_metrics(tmp_path)[0]
    for key, term in found.items():
        assert [line[f"drift_rms/{key}/{tau:g}"] for tau in TAUS] == pytest.approx(term.drift_rms.tolist())
    with pytest.raises(ValueError, match=r"temperatures must be those of the loss, 2 for feature a, got \['0.05'\]"):
        drift_rms_by_feature(found, (0.05,))
