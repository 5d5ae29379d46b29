"""SampleQueue holds what the authors' memory bank holds, and draws from it as theirs does.

Provenance: tests/golden/official_memory_bank.npz is the state of the bank of lambertae/drifting at commit accd0cf after
14 samples of three out of four classes, capacity 3, and two of its draws. Arrays only. The draws come from numpy's
global generator; ours come from another one, so only what they may contain can be the same.
"""

from pathlib import Path

import pytest
import torch
from golden_comparisons import assert_all_hold, filled_queue, queue_comparisons
from golden_networks import load_arrays


@pytest.fixture(scope="module")
def arrays():
    return load_arrays(Path(__file__).parent.parent / "golden" / "official_memory_bank.npz")


@pytest.fixture
def queue(arrays):
    return filled_queue(arrays, per_push=1)


def test_contents_counts_and_order_of_overwriting(arrays):
    held = list(queue_comparisons(arrays))
    assert len(held) == 9
    assert_all_hold(held)


def test_draws_without_replacement_are_distinct_samples_of_the_class(arrays, queue):
    filled = torch.from_numpy(arrays["count"]).nonzero()[:, 0]
    theirs = torch.from_numpy(arrays["sampled2"])[filled]
    for drawn in (theirs, *(queue.sample(filled, theirs.shape[1]) for _ in range(20))):
        for label, samples in zip(filled.tolist(), drawn.flatten(1).tolist(), strict=True):
            assert len(set(samples)) == len(samples)
            assert set(samples) <= set(arrays["bank"][label].flatten().tolist())


def test_more_than_a_class_holds_is_drawn_with_replacement_when_asked(arrays, queue):
    label = torch.tensor([0])
    held, theirs = set(arrays["bank"][0].flatten().tolist()), torch.from_numpy(arrays["sampled5"])
    n = theirs.shape[1]
    assert n > len(held)
    draws = torch.cat([queue.sample(label, n, allow_repeats=True) for _ in range(20)]).flatten(1)
    assert set(theirs.flatten().tolist()) <= held
    assert set(draws.flatten().tolist()) == held
    assert draws.sort(dim=1).values.unique(dim=0).shape[0] > 1
    with pytest.raises(LookupError, match="allow_repeats=True"):
        queue.sample(label, n)


def test_an_empty_class_is_refused_where_the_authors_bank_returns_zeros(arrays, queue):
    [empty] = (arrays["count"] == 0).nonzero()[0]
    assert not arrays["sampled2"][empty].any()
    with pytest.raises(LookupError, match="no samples yet"):
        queue.sample(torch.tensor([int(empty)]), 1, allow_repeats=True)
