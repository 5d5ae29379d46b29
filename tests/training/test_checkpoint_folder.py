"""Folders of many ranks, read by one process: whatever is wrong with one is noticed, said, and never executed."""

import hashlib
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import Malicious, assert_same, sign
from torch import nn

from drifting.training.checkpoint import Checkpoint, load_entries
from drifting.training.checkpoint_file import CheckpointContent, checkpoint_path, write_file
from drifting.training.checkpoint_folder import FORMAT, MANIFEST, rank_file
from drifting.training.errors import CheckpointError
from drifting.training.pieces import join_pieces, own_pieces
from drifting.training.random import RandomState
from drifting.training.state import TrainState


def write(run_dir: Path, step: int, ranks: int = 2) -> Path:
    """What `ranks` ranks leave behind, the weights by rows of the first tensor; all of them written from here."""
    torch.manual_seed(step)
    net = nn.Linear(3, 4)
    rows = 4 // ranks
    digests = {}
    folder = checkpoint_path(run_dir, step, ranks=ranks)
    folder.mkdir(parents=True)
    for rank in range(ranks):
        part = {"weight": net.weight.detach()[rank * rows : (rank + 1) * rows].clone(), "bias": torch.empty(0)}
        pieces = [(0, (rank * rows, 0), (4, 3))]
        if rank == 0:
            part["bias"] = net.bias.detach()
            pieces.append((1, (0,), (4,)))
        entries = {"random": RandomState().state_dict(), "net": part, "state": {"step": step}}
        file = rank_file(folder, rank)
        digests[file.name] = write_file(file, CheckpointContent(step, entries, rank, ranks, {"net": pieces}))
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "sha256": digests}))
    return folder


def load(run_dir: Path) -> tuple[int | None, nn.Linear]:
    torch.manual_seed(1000)
    net, state = nn.Linear(3, 4), TrainState()
    step = Checkpoint(run_dir, net=net, state=state).load_latest()
    assert step == (state.step or None)
    return step, net


def test_parts_are_put_together(tmp_path):
    write(tmp_path, 7)
    step, net = load(tmp_path)
    torch.manual_seed(7)
    expected = nn.Linear(3, 4)
    assert step == 7
    assert_same(net.state_dict(), expected.state_dict())
    assert load_entries(tmp_path, net=nn.Linear(3, 4)) == 7


def edit_manifest(**changes):
    def edit(folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return edit


def swap(folder):
    """A manifest that takes one rank for the other: each file is whole."""
    one, other = rank_file(folder, 0), rank_file(folder, 1)
    raw = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(raw)
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (one, other)}
    edit_manifest(sha256=digests)(folder)


def of_another_step(folder):
    """Whole, signed and listed, but of another save."""
    shutil.rmtree(folder)
    other = write(folder.parent.parent, 50)
    other.rename(folder)
    edit_manifest(step=9)(folder)


def fewer_ranks(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]["rank_00001.pt"]
    edit_manifest(sha256=manifest["sha256"])(folder)


def cut(name, keep):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


def foreign(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"of another program")
    (folder / "__0_0.distcp").write_bytes(b"of another program")


def replaced(folder):
    """The file of another checkpoint, whole, in place of this one's."""
    shutil.copy(rank_file(folder.parent / "step_00000008", 1), rank_file(folder, 1))


DAMAGES = {
    "missing file": (lambda folder: rank_file(folder, 1).unlink(), r"rank_00001.pt cannot be read: No such file"),
    "missing manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    "truncated file": (cut("rank_00001.pt", 900), "rank_00001.pt is truncated"),
    "empty file": (cut("rank_00000.pt", 0), "rank_00000.pt is truncated"),
    "truncated manifest": (cut(MANIFEST, 60), "manifest.json cannot be read"),
    "foreign folder": (foreign, "manifest.json is missing: the folder is no checkpoint"),
    "empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "manifest.json is missing"),
    "other format": (edit_manifest(format="x"), "is not the manifest of"),
    "other step": (edit_manifest(step=8), "is not the manifest of a .* of step 9"),
    "no files listed": (edit_manifest(sha256={}), "is not the manifest of"),
    "not a list of files": (edit_manifest(sha256=3), "is not the manifest of"),
    "path outside": (edit_manifest(sha256={"../../x": "0"}), "must list rank_00000.pt"),
    "wrong checksum": (edit_manifest(sha256={"rank_00000.pt": "0" * 64, "rank_00001.pt": "0" * 64}), "is not the file"),
    "file of another checkpoint": (replaced, "rank_00001.pt is not the file that manifest.json lists"),
    "ranks exchanged": (swap, "rank_00000.pt belongs elsewhere: it is .*'rank': 1"),
    "files of another step": (of_another_step, "belongs elsewhere: it is .*'step': 50"),
    "fewer ranks than there were": (fewer_ranks, "rank_00000.pt belongs elsewhere: .*'ranks': 2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folder_gives_way_to_the_one_before(tmp_path, capsys, name):
    damage, said = DAMAGES[name]
    write(tmp_path, 8)
    folder = write(tmp_path, 9)
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as raised:
        load_entries(tmp_path, net=nn.Linear(3, 4))
    assert "Delete it to continue from step 8 (step_00000008)" in str(raised.value)
    step, _ = load(tmp_path)
    assert step == 8
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING"))
    assert "kept as step_00000009.damaged. The run continues from step_00000008; steps that are lost" in warning
    assert warning.endswith("trained again: 1.")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step_00000008", "step_00000009.damaged"]


def test_every_flipped_bit_and_cut_is_noticed(tmp_path):
    """60 random damages to any file; what is not noticed may only be a change that means nothing."""
    draw = random.Random(0)
    folder = write(tmp_path, 9)
    _, whole = load(tmp_path)
    for _ in range(60):
        file = draw.choice(sorted(folder.iterdir()))
        raw = file.read_bytes()
        place = draw.randrange(len(raw))
        flipped = raw[:place] + bytes([raw[place] ^ 1 << draw.randrange(8)]) + raw[place + 1 :]
        file.write_bytes(draw.choice([flipped, raw[:place]]))
        try:
            _, net = load(tmp_path)
        except CheckpointError as error:
            assert str(folder) in str(error)
        else:
            assert file.name == MANIFEST
            assert_same(net.state_dict(), whole.state_dict())
        file.write_bytes(raw)


def test_pickled_code_is_refused_and_never_runs(tmp_path):
    """In a rank's file, signed and listed; and in the file where torch.distributed.checkpoint has its own pickle."""
    write(tmp_path, 8)
    folder, proof = write(tmp_path, 9), tmp_path / "executed"
    file = rank_file(folder, 1)
    entries = {"net": Malicious(proof)}
    content = {"format": "drifting checkpoint 1", "step": 9, "rank": 1, "ranks": 2, "entries": entries}
    torch.save(content, file)
    (folder / ".metadata").write_bytes(pickle.dumps(Malicious(proof)))
    file.write_bytes(sign(file.read_bytes()))
    digests = {f"rank_0000{r}.pt": hashlib.sha256(rank_file(folder, r).read_bytes()).hexdigest() for r in range(2)}
    edit_manifest(sha256=digests)(folder)
    with pytest.raises(CheckpointError, match="something else than tensors"):
        load_entries(tmp_path, net=nn.Linear(3, 4))
    assert load(tmp_path)[0] == 8
    assert not proof.exists()


def test_parts_that_are_missing_or_differ_are_refused():
    tree = {"a": torch.arange(6.0).view(2, 3), "b": [torch.tensor(1.0)]}
    whole, pieces = own_pieces(tree, rank=0)
    empty, none = own_pieces(tree, rank=1)
    assert none == []
    assert_same(join_pieces([whole, empty], [pieces, none], lambda *_: None), tree)
    with pytest.raises(ValueError, match="no file holds a"):
        join_pieces([whole, empty], [pieces[1:], none], lambda *_: None)
    with pytest.raises(ValueError, match="3 of 6 numbers of a are in no file"):
        join_pieces([{**whole, "a": tree["a"][:1]}, empty], [pieces, none], lambda *_: None)
    with pytest.raises(ValueError, match="list different tensors"):
        join_pieces([whole, {"a": empty["a"]}], [pieces, none], lambda *_: None)


def test_older_form_of_the_same_step_goes_and_keep_counts_both_forms(tmp_path):
    write(tmp_path, 8)
    write(tmp_path, 9)
    torch.manual_seed(0)
    Checkpoint(tmp_path, keep=2, net=nn.Linear(3, 4), state=TrainState(9)).save(9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000008", "step_00000009.pt"]


class Odd(TrainState):
    """Neither the same on every rank nor able to deal itself."""


def test_what_belongs_to_a_rank_and_cannot_be_dealt_is_refused(tmp_path):
    folder = write(tmp_path, 8)
    file = rank_file(folder, 1)
    content = torch.load(file, weights_only=True)
    content["entries"]["state"]["step"] = 80
    del content["format"]
    digest = write_file(file, CheckpointContent(**content))
    manifest = json.loads((folder / MANIFEST).read_text())
    edit_manifest(sha256=manifest["sha256"] | {file.name: digest})(folder)
    net, state = nn.Linear(3, 4), Odd()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"state refuses .* differs between the 2 ranks .* give Odd a load_state"):
        Checkpoint(tmp_path, net=net, state=state).load_latest()
    assert state.step == 0
    assert_same(dict(net.state_dict()), before)
