"""What is the same on every rank is written by rank 0 alone, and read by all."""

from types import SimpleNamespace

import pytest
import torch

from drifting.training.checkpoint import Checkpoint
from drifting.training.checkpoint_file import CheckpointContent
from drifting.training.restore import restore


class Held:
    def __init__(self, value, *, saved_once):
        self.value, self.saved_once = value, saved_once

    def state_dict(self):
        return {"value": torch.tensor(self.value)}

    def load_state_dict(self, state):
        self.value = int(state["value"])


def as_rank(rank, count=2):
    return SimpleNamespace(rank=rank, count=count, first=rank == 0, exchange=lambda value: [value])


@pytest.mark.parametrize("saved_once", [True, False])
def test_rank_one_writes_only_what_is_its_own(tmp_path, monkeypatch, saved_once):
    written = []
    checkpoint = Checkpoint(tmp_path, entry=Held(7, saved_once=saved_once))
    monkeypatch.setattr(checkpoint, "_ranks", as_rank(1))
    monkeypatch.setattr(checkpoint, "_write", lambda content: written.append(content) or tmp_path)
    checkpoint.save(1)
    assert written[0].entries["entry"] == ({} if saved_once else {"value": torch.tensor(7)})


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_reads_what_rank_zero_wrote(tmp_path, rank):
    entry = Held(0, saved_once=True)
    saved = [
        CheckpointContent(1, {"entry": state}, k, 2, {}) for k, state in enumerate([{"value": torch.tensor(7)}, {}])
    ]
    restore(tmp_path, saved, {"entry": entry}, as_rank(rank))
    assert entry.value == 7


def test_what_is_a_ranks_own_stays_its_own(tmp_path):
    entry = Held(0, saved_once=False)
    states = [{"value": torch.tensor(7)}, {"value": torch.tensor(8)}]
    saved = [CheckpointContent(1, {"entry": state}, k, 2, {}) for k, state in enumerate(states)]
    restore(tmp_path, saved, {"entry": entry}, as_rank(1))
    assert entry.value == 8
