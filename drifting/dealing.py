"""The queues of K ranks dealt to L ranks: what a run needs to continue on another number of processes.

Nothing is lost as long as the new queues hold it, the newest samples go first, and every rank gets the same share of
every class to within one. The result depends on the saved states alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def deal_queue(states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int, capacity: int) -> dict[str, Any]:
    """State of the queue of `rank`, out of `ranks`, from the states of every rank's `SampleQueue`.

    Samples are as old as their place in their own queue: the newest of each queue come first, then the second newest.
    A class is dealt out in this order, one to each rank in turn, until the queues are full: L * capacity newest stay.

    Args:
        states: `SampleQueue.state_dict()` of K ranks, with the same classes, sample shape and type.
        rank: which of the new ranks, 0 .. ranks - 1.
        ranks: L.
        capacity: of each new queue.

    Returns:
        What `SampleQueue.load_state_dict` takes. Its generator continues that of the old rank of this number; that of a
        rank that is new starts from a seed derived from all of them.

    Raises:
        ValueError: no states, states that do not fit together, a rank outside 0 .. ranks - 1, no capacity.
    """
    if not states or not 0 <= rank < ranks or capacity < 1:
        raise ValueError(
            f"needs one or more states, 0 <= rank < ranks and capacity >= 1, got {len(states)} states, "
            f"rank={rank}, ranks={ranks}, capacity={capacity}"
        )
    first = states[0]["samples"]
    for number, state in enumerate(states):
        other = state["samples"]
        if (other.shape[0], other.shape[2:], other.dtype) != (first.shape[0], first.shape[2:], first.dtype):
            raise ValueError(
                f"states must hold the same classes and samples, [C, capacity, *S]: number 0 is {first.dtype} "
                f"{tuple(first.shape)}, number {number} is {other.dtype} {tuple(other.shape)}"
            )
    old_capacity = max(state["samples"].shape[1] for state in states)
    age = torch.arange(old_capacity)
    held = torch.stack([age < state["count"][:, None] for state in states], dim=2)  # [C, age, K]: newest first
    place = held.flatten(1).cumsum(1).view(held.shape) - 1  # [C, age, K], from the newest of the class on
    classes = torch.arange(len(first))
    # Which rank gets the newest differs from class to class, or rank 0 would get every remainder.
    mine = held & (place < ranks * capacity) & ((place + classes[:, None, None]) % ranks == rank)
    count = mine.flatten(1).sum(1)
    samples = first.new_zeros(len(first), capacity, *first.shape[2:])
    for number, state in enumerate(states):
        label, old_age = mine[:, :, number].nonzero(as_tuple=True)
        new_age = place[label, old_age, number] // ranks
        source = (state["cursor"][label] - 1 - old_age) % state["samples"].shape[1]
        samples[label, count[label] - 1 - new_age] = state["samples"][label, source]
    generators = [state["generator"] for state in states]
    generator = torch.Generator().manual_seed(derived_seed(generators, rank))
    return {
        "samples": samples,
        "count": count,
        "cursor": count % capacity,
        "generator": generators[rank].clone() if rank < len(generators) else generator.get_state(),
    }


def derived_seed(generator_states: Sequence[Tensor], rank: int) -> int:
    """A seed in [0, 2^63) for `rank` from the states (uint8) of the generators that were there."""
    digest = hashlib.sha256(rank.to_bytes(8, "little"))
    for state in generator_states:
        digest.update(bytes(state.tolist()))
    return int.from_bytes(digest.digest()[:8], "little") >> 1
