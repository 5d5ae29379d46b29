"""Checkpoint files: whole or absent, verified, never executed; loading changes everything or nothing."""

import copy
import hashlib
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from drifting.training.checkpoint import Checkpoint, load_entries
from drifting.training.checkpoint_file import CHECKSUM, checkpoint_path, checkpoint_paths
from drifting.training.ema import Ema
from drifting.training.errors import CheckpointError
from drifting.training.state import TrainState


class Run:
    """The objects of a small run, already trained for `steps` steps; `width` makes it another model."""

    def __init__(self, run_dir, *, width=4, steps=0, keep=3, seed=0):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.ema = Ema(self.net, [0.5, 0.9])
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.state = TrainState()
        self.checkpoint = Checkpoint(
            run_dir, keep=keep, net=self.net, ema=self.ema, optimizer=self.optimizer, state=self.state
        )
        self.train(steps)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.net(torch.randn(8, 3)).pow(3).sum().backward()
            self.optimizer.step()
            self.ema.update(self.net)
            self.state.step += 1

    def everything(self):
        return copy.deepcopy(
            [torch.get_rng_state()] + [entry.state_dict() for entry in (self.net, self.ema, self.optimizer, self.state)]
        )


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def sign(payload: bytes) -> bytes:
    """A file with a correct checksum: what an attacker, or a newer format, would write."""
    return payload + CHECKSUM + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def test_everything_comes_back_and_training_continues_identically(tmp_path):
    run = Run(tmp_path, steps=3)
    run.checkpoint.save(3)
    saved = run.everything()
    run.train(4)
    other = Run(tmp_path, seed=1)
    assert other.checkpoint.load_latest() == 3
    assert_same(other.everything(), saved)
    other.train(4)
    assert_same(other.everything(), run.everything())


def test_fresh_directory_loads_nothing(tmp_path):
    run = Run(tmp_path)
    before = run.everything()
    assert run.checkpoint.load_latest() is None
    assert_same(run.everything(), before)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_entries(tmp_path, net=run.net)


def test_the_last_k_stay_and_the_newest_counts(tmp_path):
    run = Run(tmp_path, keep=2)
    for step in (5, 900, 1000, 10_000):
        run.checkpoint.save(step)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step_00001000.pt", "step_00010000.pt"]
    assert Run(tmp_path).checkpoint.load_latest() == 10_000


def test_files_are_ordinary_torch_files(tmp_path):
    path = Run(tmp_path, steps=2).checkpoint.save(2)
    assert path == tmp_path / "checkpoints" / "step_00000002.pt"
    content = torch.load(path, weights_only=True)
    assert set(content["entries"]) == {"random", "net", "ema", "optimizer", "state"}


def test_one_entry_is_loaded_for_sampling(tmp_path):
    run = Run(tmp_path, steps=3)
    run.checkpoint.save(3)
    leftover = tmp_path / "checkpoints" / ".step_00000004.pt.tmp"
    leftover.touch()
    ema = Ema(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), [0.5, 0.9])
    assert load_entries(tmp_path, ema=ema) == 3
    assert_same(ema.state_dict(), run.ema.state_dict())
    assert leftover.exists()  # it may be a training process's save in progress
    with pytest.raises(CheckpointError, match="it holds no critic"):
        load_entries(tmp_path, critic=nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "is truncated, or no checkpoint at all"),
        (lambda raw: raw[:-1], "does not end with its checksum"),
        (lambda raw: b"", "is truncated, or no checkpoint at all"),
        (lambda raw: raw[:700] + bytes([raw[700] ^ 1]) + raw[701:], "is damaged"),
        (lambda raw: raw[: -len(CHECKSUM) - 65], "was not written by this library"),
        (lambda raw: sign(b"PK nonsense"), "holds something else than tensors and primitives"),
    ],
)
def test_damaged_newest_is_said_and_set_aside_and_the_one_before_restored(tmp_path, capsys, damage, said):
    run = Run(tmp_path, steps=1)
    run.checkpoint.save(1)
    saved = run.everything()
    run.train(2)
    path = run.checkpoint.save(3)
    path.write_bytes(damage(path.read_bytes()))
    other = Run(tmp_path, seed=1)
    before = other.everything()
    with pytest.raises(CheckpointError) as raised:  # an older one never stands in for what is sampled
        load_entries(tmp_path, net=other.net)
    assert said in str(raised.value)
    assert "Delete it to continue from step 1 (step_00000001.pt)" in str(raised.value)
    assert_same(other.everything(), before)
    assert other.checkpoint.load_latest() == 1
    assert_same(other.everything(), saved)
    warning = capsys.readouterr().err
    assert warning.startswith(f"WARNING: {path} ")
    assert said in warning
    assert "It is kept as step_00000003.pt.damaged. The run continues from step_00000001.pt; steps" in warning
    assert warning.endswith("trained again: 2.\n")
    assert load_entries(tmp_path, net=other.net) == 1
    other.checkpoint.save(3)
    assert sorted(found.name for found in path.parent.iterdir()) == [
        "step_00000001.pt",
        "step_00000003.pt",
        "step_00000003.pt.damaged",
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_no_whole_checkpoint_is_refused_with_the_way_out(tmp_path, count):
    run = Run(tmp_path)
    paths = [run.checkpoint.save(step) for step in range(1, count + 1)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    other = Run(tmp_path, seed=1)
    before = other.everything()
    which = "it" if count == 1 else "them"
    with pytest.raises(CheckpointError, match=f"No earlier checkpoint exists: delete {which} to start from step 0"):
        other.checkpoint.load_latest()
    assert_same(other.everything(), before)
    assert all(path.exists() for path in paths)


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.checkpoint.save(1)
    newest = run.checkpoint.save(2)
    original = Path.open

    def forbidden(self, *args, **kwargs):
        if self == newest:
            raise PermissionError(13, "Permission denied")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(CheckpointError, match=r"Permission denied\. Allow this user to read it"):
        run.checkpoint.load_latest()
    assert newest.exists()


def test_every_flipped_byte_is_noticed(tmp_path):
    run = Run(tmp_path)
    path = run.checkpoint.save(1)
    raw = path.read_bytes()
    for position in range(0, len(raw), len(raw) // 50):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 64]) + raw[position + 1 :])
        with pytest.raises(CheckpointError, match="delete it to start from step 0"):
            run.checkpoint.load_latest()


def test_what_a_killed_save_left_is_removed_at_the_start(tmp_path):
    good = Run(tmp_path).checkpoint.save(1)
    (good.parent / ".step_00000002.pt.tmp").write_bytes(b"half")
    (good.parent / ".step_00000003.tmp").mkdir()  # of many ranks
    (good.parent / ".step_00000003.tmp" / "rank_00001.pt").write_bytes(b"half")
    (good.parent / "notes.txt").touch()
    Run(tmp_path)
    assert sorted(path.name for path in good.parent.iterdir()) == ["notes.txt", "step_00000001.pt"]


def test_torch_file_of_another_program_is_refused(tmp_path):
    path = checkpoint_path(tmp_path, 7)
    path.parent.mkdir()
    torch.save({"model": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="was not written by this library"):
        Run(tmp_path).checkpoint.load_latest()
    path.write_bytes(sign(path.read_bytes()))
    with pytest.raises(CheckpointError, match="is not a 'drifting checkpoint 1' file"):
        Run(tmp_path).checkpoint.load_latest()


class Malicious:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("signed", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path, signed):
    proof = tmp_path / "executed"
    path = checkpoint_path(tmp_path, 7)
    path.parent.mkdir()
    torch.save({"format": "drifting checkpoint 1", "step": 7, "entries": {"net": Malicious(proof)}}, path)
    if signed:
        path.write_bytes(sign(path.read_bytes()))
    with pytest.raises(CheckpointError, match="something else than tensors" if signed else "was not written by this"):
        Run(tmp_path).checkpoint.load_latest()
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed dangerous


def test_other_model_is_refused_with_its_shapes_and_nothing_changes(tmp_path):
    Run(tmp_path, width=4, steps=2).checkpoint.save(2)
    other = Run(tmp_path, width=5, steps=1, seed=1)
    before = other.everything()
    with pytest.raises(CheckpointError) as raised:
        other.checkpoint.load_latest()
    assert "net.0.weight is [4, 3] float32 there and [5, 3] float32 here" in str(raised.value)
    assert "more. Use the configuration" in str(raised.value)
    assert_same(other.everything(), before)


def test_missing_and_surplus_weights_are_named(tmp_path):
    Checkpoint(tmp_path, net=nn.Linear(3, 2, bias=False)).save(1)
    with pytest.raises(CheckpointError, match=r"net\.bias is missing"):
        Checkpoint(tmp_path, net=nn.Linear(3, 2)).load_latest()
    Checkpoint(tmp_path, net=nn.Linear(3, 2)).save(2)
    with pytest.raises(CheckpointError, match=r"net.bias \[2\] float32 is surplus"):
        Checkpoint(tmp_path, net=nn.Linear(3, 2, bias=False)).load_latest()


def test_missing_and_surplus_entries_are_named(tmp_path):
    net = nn.Linear(1, 1)
    Checkpoint(tmp_path, net=net, state=TrainState()).save(1)
    with pytest.raises(CheckpointError, match="it also holds state"):
        Checkpoint(tmp_path, net=net).load_latest()
    with pytest.raises(CheckpointError, match="it holds no queue"):
        Checkpoint(tmp_path, net=net, state=TrainState(), queue=TrainState()).load_latest()


class Refusing(TrainState):
    def load_state_dict(self, state):
        if state["step"] == 5:
            raise ValueError("capacity must be 8, got 4")
        super().load_state_dict(state)


def test_refusal_by_one_object_puts_the_others_back(tmp_path):
    run = Run(tmp_path, steps=2)
    torch.manual_seed(1)
    Checkpoint(tmp_path, first=run.state, net=run.net, optimizer=run.optimizer, last=TrainState(5)).save(2)
    fresh = Run(tmp_path, seed=1)
    before = fresh.everything()
    with pytest.raises(CheckpointError, match="last refuses its state: capacity must be 8, got 4"):
        Checkpoint(tmp_path, first=fresh.state, net=fresh.net, optimizer=fresh.optimizer, last=Refusing()).load_latest()
    assert_same(fresh.everything(), before)


def test_objects_that_could_not_be_read_back_are_refused_when_saving(tmp_path):
    class Odd(TrainState):
        def state_dict(self):
            return {"scores": [1.0, np.float64(2.0)]}

    with pytest.raises(CheckpointError, match=r"odd\['scores'\]\[1\] is a numpy.float64"):
        Checkpoint(tmp_path, odd=Odd()).save(1)
    assert checkpoint_paths(tmp_path) == []


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(ValueError, match="must not be named random"):
        Checkpoint(tmp_path, random=TrainState())


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """The kernel itself refuses the write: no file may grow beyond the limit (Python ignores SIGXFSZ)."""
    run = Run(tmp_path, keep=1, steps=1)
    good = run.checkpoint.save(1)
    run.train(1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, good.stat().st_size // 2, good.stat().st_size - 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            with pytest.raises(CheckpointError) as raised:
                run.checkpoint.save(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        text = str(raised.value)
        assert f"cannot write {tmp_path / 'checkpoints' / 'step_00000002.pt'}: File too large" in text
        assert "MiB are free there, the last good checkpoint is step_00000001.pt" in text
        assert [path.name for path in good.parent.iterdir()] == ["step_00000001.pt"]
    assert Run(tmp_path).checkpoint.load_latest() == 1


def test_failing_fsync_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path, keep=1)
    run.checkpoint.save(1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run.checkpoint.save(2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001.pt"]


def slow_disk(monkeypatch, seconds):
    """Every save takes this long before its file has its name."""
    replace = Path.replace

    def slowly(source, target):
        time.sleep(seconds)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", slowly)


def test_background_save_holds_what_was_there_when_it_was_called(tmp_path, monkeypatch):
    slow_disk(monkeypatch, 0.3)
    run = Run(tmp_path, steps=1)
    with run.checkpoint.in_background():
        began = time.monotonic()
        path = run.checkpoint.save(1)
        stalled = time.monotonic() - began
        saved = run.everything()
        run.train(5)
        assert not path.exists()
        run.checkpoint.save(6)  # waits for the first
        assert path.exists()
        later = run.everything()
    assert time.monotonic() - began > 0.6
    assert stalled < 0.2
    other = Run(tmp_path, seed=1)
    assert other.checkpoint.load_latest() == 6
    assert_same(other.everything(), later)
    checkpoint_path(tmp_path, 6).unlink()
    assert other.checkpoint.load_latest() == 1
    assert_same(other.everything(), saved)


def test_background_save_that_fails_is_raised_by_the_next_and_loses_nothing(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path)
    run.checkpoint.save(1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for ending in ("save", "wait", "block", "failed block"):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            error, match = (KeyError, "bug") if ending == "failed block" else (CheckpointError, "No space left")
            with pytest.raises(error, match=match), run.checkpoint.in_background():
                run.checkpoint.save(2)
                if ending == "failed block":
                    raise KeyError("bug")
                if ending != "block":
                    getattr(run.checkpoint, ending)(*[3][: ending == "save"])
                    raise AssertionError("not raised")
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001.pt"]
    assert "error: cannot write" in capsys.readouterr().err
    assert run.checkpoint.save(2).exists()  # written before it returns again
