"""Tables of the long benchmarks: rows are means over seeds, ratios are to drifting, a finished run is not repeated."""

import json
import re

import pytest

from benchmarks import ablations, learning_curve, policies


def eval_log(score, latency):
    return {
        "test/mean_score": score,
        "test/success_rate": score,
        "test/sim_max_reward_100000": score,
        "test/sim_max_reward_100001": 0.0,
        "demonstrations": "scripted",
        "checkpoints": [{"mean_score": score}],
        "latency": {"p50_ms": latency, "p99_ms": 2 * latency},
    }


def finished_run(folder, seconds):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "seconds": seconds}) + "\n")
    (folder / "environment.json").write_text(json.dumps([{"commit": "abc"}]))
    return folder


@pytest.fixture
def rows(tmp_path):
    runs = [finished_run(tmp_path / str(seed), 100.0 * (seed + 1)) for seed in range(2)]
    drifting = policies.summarize("lift", "drifting", [0, 1], runs, [eval_log(0.9, 2.0), eval_log(0.7, 2.0)])
    diffusion = policies.summarize("lift", "diffusion 100", [0, 1], runs, [eval_log(0.8, 200.0), eval_log(1.0, 220.0)])
    return [diffusion, drifting]


def test_a_row_is_the_mean_over_seeds(rows):
    _, drifting = rows
    assert drifting["score"] == pytest.approx(0.8)
    assert drifting["by_seed"] == [0.9, 0.7]
    assert drifting["training_seconds"] == [100.0, 200.0]
    low, high = drifting["interval"]
    assert low < 0.4 < high  # of the four rewards .9, 0, .7, 0


def test_the_interval_is_over_all_checkpoints(tmp_path):
    run = finished_run(tmp_path / "run", 100.0)
    log = eval_log(0.5, 2.0)
    log["checkpoints"] = [{"mean_score": 0.5, "scores": [0.5, 0.5]}, {"mean_score": 0.45, "scores": [0.9, 0.0]}]
    low, high = policies.summarize("lift", "drifting", [0], [run], [log])["interval"]
    assert (low, high) == pytest.approx((0.25, 0.7))  # of the two means


def test_held_out_figures_are_no_training():
    metrics = [
        {"step": 10, "seconds": 30.0, "time/held out": 2.0},
        {"step": 20, "seconds": 40.0},
        {"step": 25, "seconds": 50.0, "time/held out": 1.0},
    ]
    assert policies.training_seconds(metrics) == 25.0


def test_a_table_without_drifting_policies_has_no_multiples(rows, capsys):
    policies.print_rows(rows[:1])
    assert "210.00" in capsys.readouterr().out


def test_latencies_are_told_as_multiples_of_the_drifting_policy(rows, capsys):
    policies.print_rows(rows)
    diffusion, drifting = [line for line in capsys.readouterr().out.splitlines() if "lift" in line]
    assert "210.00" in diffusion and " 105 " in diffusion
    assert "2.00" in drifting and " 1 " in drifting


def test_a_rollout_that_is_there_is_not_played_again(tmp_path, monkeypatch):
    out = tmp_path / "eval-diffusion-16-50x10"
    out.mkdir()
    (out / "eval_log.json").write_text('{"test/mean_score": 0.5}')
    monkeypatch.setattr(policies, "run", lambda *_: pytest.fail("it is there"))
    playing = {"episodes": 50, "checkpoints": 10}
    assert policies.play(tmp_path, "diffusion 16", ["sampler=ddim"], playing) == {"test/mean_score": 0.5}


def test_the_best_guidance_scale_counts_and_real_images_do_not():
    row = {"FD(judge) / real": 2.0}, {"FD(judge) / real": 1.5}, {"FD(judge) / real": 1.0}
    metrics = {"rows": dict(zip(["alpha 1", "alpha 2", "training images"], row, strict=True))}
    assert ablations.best(metrics) == (1.5, "alpha 2")


def test_other_settings_are_other_runs_and_finished_ones_are_used_again(tmp_path, monkeypatch):
    asked = []

    def train(module, root, name, settings):
        asked.append(settings)
        (root / name).mkdir(parents=True)
        (root / name / "metrics.json").write_text('{"rows": {}}')

    monkeypatch.setattr(ablations, "run", train)
    variant = ablations.ABLATIONS["positives"].variants[1]
    config = ablations.AblationConfig("positives", seeds=[0], root=str(tmp_path))
    for changed in (config, config, ablations.AblationConfig("positives", seeds=[0], root=str(tmp_path), steps=5)):
        ablations.trained(changed, variant, seed=0)
    assert ["drift.num_positive=16" in settings for settings in asked] == [True, True]
    assert ["run.steps=5" in settings for settings in asked] == [False, True]


def test_the_command_line_takes_the_names_of_runs_as_they_are(tmp_path, monkeypatch):
    names = []

    def train(module, root, name, settings):
        names.append(name)
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "metrics.json").write_text('{"rows": {}}')
        return root / name

    monkeypatch.setattr(ablations, "run", train)
    for name, ablation in ablations.ABLATIONS.items():
        for variant in ablation.variants:
            ablations.trained(ablations.AblationConfig(name, root=str(tmp_path)), variant, seed=0)
    assert "mae_classification_steps_0" in names
    assert not [name for name in names if not re.fullmatch(r"\w+", name)]


def test_every_ablation_changes_one_thing_from_its_reference():
    for name, ablation in ablations.ABLATIONS.items():
        settings = {(variant.settings, variant.encoder) for variant in ablation.variants}
        assert len(settings) == len(ablation.variants), name


def test_a_learning_curve_pairs_what_was_played_with_the_held_out_figures_of_that_step(capsys):
    metrics = [{"step": step, "held_out/es": 1 / step, "held_out/ssr": 0.9} for step in (1, 2, 4)]
    metrics.insert(1, {"step": 2, "loss": 3.0})  # a step may have two lines
    log = {"checkpoints": [{"step": 2, "mean_score": 0.5}, {"step": 4, "mean_score": 1.0}]}
    points = learning_curve.points_of(log, metrics)
    assert points == [
        {"step": 2, "score": 0.5, "es": 0.5, "ssr": 0.9},
        {"step": 4, "score": 1.0, "es": 0.25, "ssr": 0.9},
    ]
    other = [point | {"score": point["score"] - 0.5} for point in points]
    learning_curve.print_curves([points, other])
    first, last = capsys.readouterr().out.splitlines()[1:]
    assert "0.250 +- 0.354" in first and "0.50 0.00" in first
    assert "0.750 +- 0.354" in last and "1.00 0.50" in last
