"""What a loop tells of itself: one line holds figures and time split, a stalled source is named, a profile appears."""

import json
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from drifting.training.config import LogConfig
from drifting.training.metrics_log import read_metrics
from drifting.training.telemetry import Telemetry
from drifting.training.world import World

WORLD = World(torch.device("cpu"))


@dataclass
class Config:
    log: LogConfig = field(default_factory=LogConfig)


def run(tmp_path, log, flops=None, data_seconds=0.01, steps=10):
    telemetry, net = Telemetry(log, WORLD, flops=flops), nn.Linear(2, 2)
    forward = telemetry.wrap("generator", net)
    with telemetry.loop(tmp_path, net, total=steps, start=0, show=["loss"], config=Config(log)):
        for _ in range(steps):
            with telemetry.waiting_for("shard 7"):
                time.sleep(data_seconds)
            with telemetry.region("loss"):
                loss = forward(torch.ones(1, 2)).sum()
            telemetry.step(5)
        telemetry.write(steps, {"loss": loss})
    return read_metrics(tmp_path)


def test_a_line_holds_figures_throughput_and_the_time_of_every_region(tmp_path):
    (line,) = run(tmp_path, LogConfig())
    assert line["images_per_second"] == pytest.approx(5 / line["seconds_per_step"])
    assert line["time/data"] >= 0.01 > line["time/generator"] > 0
    regions = [line[f"time/{name}"] for name in ("data", "generator", "loss", "other")]
    assert sum(regions) == pytest.approx(line["seconds_per_step"], rel=0.05)
    assert "loss" in line and "mfu" not in line


def test_mfu_is_needed_over_possible_and_flops_are_counted_only_where_they_are_known(tmp_path):
    def never():
        raise AssertionError("counted although the processor's FLOP/s are unknown")

    run(tmp_path, LogConfig(), flops=never)
    (tmp_path / "known").mkdir()
    (line,) = run(tmp_path / "known", LogConfig(peak_flops=1e6), flops=lambda: 500)
    assert line["mfu"] == pytest.approx(500 / line["seconds_per_step"] / 1e6)


def test_a_slow_source_is_named(tmp_path, capfd):
    run(tmp_path, LogConfig(stall_warning=0.1), data_seconds=0.5, steps=1)
    assert "rank 0 has waited" in (told := capfd.readouterr().err) and "shard 7" in told


def test_a_profile_knows_the_regions(tmp_path):
    run(tmp_path, LogConfig(profile=True))
    trace = json.loads((tmp_path / "profile" / "rank0.json").read_text())
    assert {"data", "generator", "loss"} <= {event["name"] for event in trace["traceEvents"]}


def test_waiting_outside_the_loop_is_a_mistake_of_the_caller():
    with pytest.raises(RuntimeError, match="inside Telemetry"), Telemetry(LogConfig(), WORLD).waiting_for("x"):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [("tracker", "wandbb"), ("peak_flops", 0.0), ("stall_warning", -1.0), ("stall_limit", 60.0)],
)
def test_nonsense_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"log.{key} must be"):
        LogConfig(**{key: value})
