"""metrics.jsonl, TensorBoard and the progress display, fresh and continued."""

import json
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from drifting.training import metrics_log
from drifting.training.errors import RunDirError
from drifting.training.metrics_log import MetricsLog, read_metrics


def write(run_dir, steps, *, start=0, offset=0.0):
    with MetricsLog(run_dir, total=100, start=start) as log:
        for step in steps:
            log.write(step, {"drift_rms": torch.tensor(step + offset), "lr": 0.5})


def steps(run_dir):
    return [line["step"] for line in read_metrics(run_dir)]


def test_scalars_of_any_kind_are_written_with_step_and_seconds(tmp_path):
    with MetricsLog(tmp_path, total=10) as log:
        log.write(
            3, {"a": torch.tensor(0.1, dtype=torch.float64), "b": torch.tensor(2), "c": 7, "d": torch.tensor(torch.nan)}
        )
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert 0 <= figures.pop("seconds") < 60
    assert figures == {"step": 3, "a": 0.1, "b": 2.0, "c": 7.0, "d": None}


def test_continued_log_drops_what_was_done_after_the_checkpoint(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [30, 40, 50], start=20, offset=0.25)
    assert steps(tmp_path) == [10, 20, 30, 40, 50]
    assert [line["drift_rms"] for line in read_metrics(tmp_path)] == [10, 20, 30.25, 40.25, 50.25]
    seconds = [line["seconds"] for line in read_metrics(tmp_path)]
    assert seconds == sorted(seconds)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("drift_rms")
    assert [(event.step, event.value) for event in events] == [
        (10, 10),
        (20, 20),
        (30, 30.25),
        (40, 40.25),
        (50, 50.25),
    ]


def test_seconds_count_on_from_the_last_line_that_stays(tmp_path):
    lines = [{"step": 10, "seconds": 100.0}, {"step": 20, "seconds": 200.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(tmp_path, [15], start=10)
    assert 100 <= read_metrics(tmp_path)[-1]["seconds"] < 160


def test_line_cut_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, [10, 20])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "dri')
    assert steps(tmp_path) == [10, 20]
    write(tmp_path, [30], start=20)
    assert steps(tmp_path) == [10, 20, 30]


def test_damage_elsewhere_is_reported(tmp_path):
    write(tmp_path, [10])
    path = tmp_path / "metrics.jsonl"
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(RunDirError, match=r"metrics.jsonl, line 1, is not JSON"):
        write(tmp_path, [20], start=10)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"drift_rms": torch.zeros(3)}, r"figure drift_rms must be a scalar tensor of shape \(\), got \(3,\)"),
        ({"step": 1.0}, "figures must not be named step"),
        ({"seconds": 1.0}, "figures must not be named seconds"),
    ],
)
def test_unusable_figures_are_refused(tmp_path, figures, said):
    with MetricsLog(tmp_path, total=10) as log, pytest.raises(ValueError, match=said):
        log.write(1, figures)
    assert steps(tmp_path) == []


class CountItems(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_tensors_are_fetched_together(tmp_path):
    with MetricsLog(tmp_path, total=10) as log, CountItems() as items:
        log.write(1, {f"f{i}": torch.tensor(float(i)) for i in range(9)})
    assert items.count == 0  # one stacked transfer instead of nine
    assert read_metrics(tmp_path)[0]["f8"] == 8.0


def test_plain_lines_at_a_modest_rate_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    now = iter(range(0, 1000))  # one second per look at the clock, two looks per write
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: float(next(now)))
    with MetricsLog(tmp_path, total=20, show=["drift_rms"]) as log:
        for step in range(1, 21):
            log.write(step, {"loss": 3.0, "drift_rms": 0.125})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/20", "6/20", "11/20", "16/20", "20/20"]
    assert all("drift_rms 0.125" in line and "loss" not in line for line in lines)


def test_bar_shows_the_chosen_figures_and_starts_where_the_run_continues(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with MetricsLog(tmp_path, total=100, start=40, show=["drift_rms"]) as log:
        log.write(50, {"loss": 3.0, "drift_rms": 0.125})
    bar = capsys.readouterr().err
    assert "40/100" in bar
    assert "50/100" in bar
    assert "drift_rms=0.125" in bar
    assert "loss" not in bar
