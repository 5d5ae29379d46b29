"""A run directory belongs to one configuration and one process."""

import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drifting.training.config import OptimConfig, ParallelConfig, RunConfig
from drifting.training.errors import RunDirError
from drifting.training.run_dir import check_run, load_config, open_run


@dataclass
class Root:
    run: RunConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def config(root, **optim):
    return Root(run=RunConfig(name="a", steps=5, root=str(root)), optim=OptimConfig(**optim))


def test_configuration_comes_back_equal(tmp_path):
    asked = config(tmp_path, lr=3e-8, betas=(0.5, 0.75), clip_norm=None)
    run_dir = open_run(asked.run, asked)
    assert run_dir == tmp_path / "a"
    assert load_config(run_dir, Root) == asked
    assert open_run(asked.run, asked) == run_dir
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "environment.json", "resolved.yaml"]


def test_another_configuration_is_refused_naming_each_key(tmp_path):
    first, second = config(tmp_path, lr=0.1), config(tmp_path, lr=0.2, schedule="cosine")
    run_dir = open_run(first.run, first)
    before = (run_dir / "resolved.yaml").read_text()
    with pytest.raises(RunDirError) as raised:
        open_run(second.run, second)
    lines = str(raised.value).splitlines()
    assert lines[1:3] == ["  optim.lr: 0.1 -> 0.2", "  optim.schedule: constant -> cosine"]
    assert len(lines) == 4
    assert "run.name=" in lines[3]
    assert "delete" in lines[3]
    assert (run_dir / "resolved.yaml").read_text() == before


def test_keys_that_only_one_side_has_are_named(tmp_path):
    asked = config(tmp_path)
    run_dir = open_run(asked.run, asked)
    saved = run_dir / "resolved.yaml"
    saved.write_text(saved.read_text().replace("  lr: 0.0002\n", "") + "old_section:\n  a: 1\n")
    with pytest.raises(RunDirError, match=r"old_section\.a: 1 -> \(absent\)\n  optim\.lr: \(absent\) -> 0\.0002"):
        open_run(asked.run, asked)


def test_a_run_may_be_continued_in_another_mode_but_not_in_another_precision(tmp_path):
    asked = config(tmp_path)
    run_dir = open_run(asked.run, asked)
    asked.parallel = ParallelConfig(mode="hsdp", shard=2, shard_generated=2, parts=3, timeout=5.0)
    assert open_run(asked.run, asked) == run_dir
    asked.parallel.precision = "bfloat16"
    with pytest.raises(RunDirError, match=r"parallel\.precision: float32 -> bfloat16\n"):
        open_run(asked.run, asked)


def test_what_is_free_may_differ_a_section_or_a_key(tmp_path):
    asked = config(tmp_path)
    run_dir = open_run(asked.run, asked)
    asked.optim.lr *= 2
    assert open_run(asked.run, asked, free="optim") == run_dir
    assert open_run(asked.run, asked, free=("eval", "optim.lr")) == run_dir
    for others in ("opt", "optim.schedule", ("eval", "optim.lr.more")):
        with pytest.raises(RunDirError, match=r"optim\.lr: "):
            open_run(asked.run, asked, free=others)


def test_runs_may_be_moved(tmp_path):
    asked = config(tmp_path / "here")
    open_run(asked.run, asked)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = config(tmp_path / "there")
    assert open_run(moved.run, moved) == tmp_path / "there" / "a"


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(RunDirError, match=r"holds files \(thesis.tex\) but no resolved.yaml"):
        open_run(config(tmp_path).run, config(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(RunDirError, match="is a file"):
        open_run(config(tmp_path).run, config(tmp_path))


def test_start_killed_before_the_configuration_was_saved_is_taken_over(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".resolved.yaml.tmp").write_text("run:")
    open_run(config(tmp_path).run, config(tmp_path))
    assert load_config(folder, Root) == config(tmp_path)


def test_load_config_refuses_other_folders(tmp_path):
    with pytest.raises(RunDirError, match="is not a run directory"):
        load_config(tmp_path, Root)
    (tmp_path / "resolved.yaml").write_text("a: [")
    with pytest.raises(RunDirError, match=r"resolved\.yaml cannot be read"):
        load_config(tmp_path, Root)


def test_second_process_is_refused_while_the_first_one_lives(tmp_path):
    run_dir = tmp_path / "a"
    run_dir.mkdir()
    # The holder takes the same kind of lock on the same file; it needs no torch to do so.
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
            "print('held', flush=True); input()",
            str(run_dir / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirError, match="another process is training"):
            open_run(config(tmp_path).run, config(tmp_path))
        (run_dir / "resolved.yaml").touch()
        with pytest.raises(RunDirError, match="another process is training"):
            check_run(config(tmp_path).run, config(tmp_path))
    finally:
        holder.kill()
        holder.communicate()
    (run_dir / "resolved.yaml").unlink()
    open_run(config(tmp_path).run, config(tmp_path))
    # And ours keeps others out.
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = subprocess.run([sys.executable, "-c", attempt, str(run_dir / ".lock")], capture_output=True, text=True)
    assert "BlockingIOError" in other.stderr


def test_a_run_is_refused_ahead_of_its_start_by_the_same_errors(tmp_path):
    asked = config(tmp_path)
    check_run(asked.run, asked)
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        check_run(asked.run, asked)
    (tmp_path / "a" / "thesis.tex").unlink()
    open_run(asked.run, asked)
    check_run(asked.run, asked)
    other = config(tmp_path, lr=0.7)
    with pytest.raises(RunDirError, match=r"optim\.lr: .* -> 0\.7"):
        check_run(other.run, other)
    check_run(other.run, other, free="optim")


def test_environment_lists_each_environment_once_and_nothing_private(tmp_path):
    asked = config(tmp_path)
    record = open_run(asked.run, asked) / "environment.json"
    open_run(asked.run, asked)
    (seen,) = json.loads(record.read_text())
    assert seen["python"] == platform.python_version()
    assert platform.node() not in record.read_text()
    assert str(Path.home()) not in record.read_text()
    record.write_text(json.dumps([seen | {"torch": "1.0"}]))
    open_run(asked.run, asked)
    assert [environment["torch"] for environment in json.loads(record.read_text())] == ["1.0", seen["torch"]]
