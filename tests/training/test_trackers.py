"""W&B and trackio: what they are told, imported only when asked for. The packages are stood in for by recorders."""

import sys
from types import SimpleNamespace

import pytest
import torch

from drifting.training import trackers
from drifting.training.errors import ConfigError
from drifting.training.metrics_log import MetricsLog, SilentLog, open_log, read_metrics


class Recorder:
    """The part of both packages that is used; methods are those of the real ones (wandb 0.31, trackio 0.43)."""

    def __init__(self):
        self.inits, self.logged, self.metrics, self.finished = [], [], [], []

    def init(self, **arguments):
        self.inits.append(arguments)
        return SimpleNamespace(
            log=lambda *values, **step: self.logged.append((*values, step)),
            define_metric=lambda name, **how: self.metrics.append((name, how)),
            finish=lambda **how: self.finished.append(how),
        )


@pytest.fixture
def packages(monkeypatch):
    recorders = {"wandb": Recorder(), "trackio": Recorder()}
    for name, recorder in recorders.items():
        monkeypatch.setitem(sys.modules, name, recorder)
    return recorders


def train(run_dir, **options):
    run_dir.mkdir(exist_ok=True)
    with open_log(run_dir, total=10, **options) as log:
        log.write(3, {"loss": torch.tensor(0.5)})


def test_wandb_is_told_the_figures_by_their_step(tmp_path, packages):
    config = {"run": {"seed": 1}}
    train(tmp_path / "mine", tracker="wandb", project="images", config=config)
    train(tmp_path / "mine", tracker="wandb", project="images", config=config, start=1)
    wandb = packages["wandb"]
    first, again = wandb.inits
    assert first == again  # the same run goes on
    assert first.pop("id")
    assert first == {
        "project": "images",
        "name": "mine",
        "dir": str(tmp_path / "mine"),
        "config": config,
        "resume": "allow",
    }
    assert wandb.metrics[:2] == [("step", {}), ("*", {"step_metric": "step"})]
    assert wandb.logged == [({"loss": 0.5, "step": 3}, {})] * 2
    assert wandb.finished == [{"exit_code": 0}] * 2


def test_trackio_is_told_the_figures_by_their_step(tmp_path, packages):
    train(tmp_path / "mine", tracker="trackio")
    train(tmp_path / "other", tracker="trackio")
    trackio = packages["trackio"]
    names = [init["name"] for init in trackio.inits]
    assert names[0].startswith("mine-")
    assert names[1].startswith("other-")
    assert trackio.logged == [({"loss": 0.5}, {"step": 3})] * 2
    assert trackio.finished == [{}] * 2


def test_a_new_run_in_a_folder_of_an_old_name_is_another_run(tmp_path, packages):
    train(tmp_path / "mine", tracker="wandb")
    (tmp_path / "mine" / trackers.ID).unlink()
    train(tmp_path / "mine", tracker="wandb")
    first, second = packages["wandb"].inits
    assert first["id"] != second["id"]


def test_a_failed_run_is_reported_as_failed(tmp_path, packages):
    with pytest.raises(KeyError), open_log(tmp_path, total=1, tracker="wandb"):
        raise KeyError
    assert packages["wandb"].finished == [{"exit_code": 1}]


def test_nothing_is_imported_unasked(tmp_path, monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would raise
    train(tmp_path)
    assert read_metrics(tmp_path)[0]["loss"] == 0.5
    assert not (tmp_path / trackers.ID).exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_the_way_to_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"log.tracker={name} needs the package {name}.*pip install {name}"):
        open_log(tmp_path, total=1, tracker=name)
    assert list(tmp_path.iterdir()) == []  # refused before anything is written


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"log.tracker must be one of none, wandb, trackio, got 'mlflow'"):
        open_log(tmp_path, total=1, tracker="mlflow")


def test_other_ranks_write_nothing_and_show_nothing(tmp_path, packages, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with open_log(tmp_path, total=10, main=False, tracker="wandb") as log:
        log.write(3, {"loss": torch.empty((), device="meta")})  # not even fetched
        log.close()
    assert isinstance(log, SilentLog)
    assert list(tmp_path.iterdir()) == []
    assert packages["wandb"].inits == []
    assert capsys.readouterr().err == ""


def test_the_silent_log_has_the_interface_of_the_log():
    public = {name for name in vars(MetricsLog) if not name.startswith("_")}
    assert public <= vars(SilentLog).keys()
