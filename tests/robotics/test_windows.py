"""Windows against a slow oracle that walks every episode step by step; splits by episode."""

import numpy as np
import pytest
import torch
from small_demonstrations import episode, store_of

from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.windows import WindowDataset


def oracle(lengths, horizon, seen, executed):
    """Windows as (episode, steps): the present runs over every step from which a window may start."""
    windows = []
    for index, length in enumerate(lengths):
        steps = list(range(length))
        padded = [steps[0]] * (seen - 1) + steps + [steps[-1]] * (executed - 1)
        windows += [(index, padded[at : at + horizon]) for at in range(len(padded) - horizon + 1)]
    return windows


def coded(lengths):
    """Episodes whose every number says where it stands: 1000 * episode + step."""
    for index, length in enumerate(lengths):
        at = 1000.0 * index + np.arange(length)
        yield episode(
            f"demo_{index}",
            actions=np.stack([at, -at], 1),
            object=at[:, None] + 0.25,
            pose=at[:, None, None] * np.ones((2, 3)),
        )


@pytest.mark.parametrize("horizon, seen, executed", [(16, 2, 8), (8, 1, 8), (5, 3, 2), (4, 1, 1), (6, 3, 4)])
@pytest.mark.parametrize("lengths", [(16,), (20, 16, 31)])
def test_every_window_is_the_oracle_s(tmp_path, lengths, horizon, seen, executed):
    data = WindowDataset(
        store_of(tmp_path, coded(lengths)), horizon=horizon, observation_steps=seen, action_steps=executed
    )
    expected = oracle(lengths, horizon, seen, executed)
    assert len(data) == len(expected)
    batch = data.batch(torch.arange(len(data)))
    for row, (index, steps) in enumerate(expected):
        at = 1000.0 * index + torch.tensor(steps, dtype=torch.float32)
        torch.testing.assert_close(batch.actions[row], torch.stack([at, -at], 1))
        torch.testing.assert_close(batch.observations["object"][row], at[:seen, None] + 0.25)
        torch.testing.assert_close(batch.observations["pose"][row], at[:seen, None, None].expand(seen, 2, 3))
        assert int(data.episode[row]) == index


def test_edges_of_diffusion_policy(tmp_path):
    """16 steps, H 16, To 2, Ta 8: nine windows; the first repeats one step before, the last seven after."""
    data = WindowDataset(store_of(tmp_path, coded([16])))
    steps = data.batch(range(9)).actions[..., 0].tolist()
    assert len(data) == 9
    assert steps[0] == [0, *range(15)]
    assert steps[1] == list(range(16))
    assert steps[8] == [*range(7, 16), *[15] * 7]


def test_a_batch_is_its_windows_in_the_order_asked_for(tmp_path):
    data = WindowDataset(store_of(tmp_path, coded([20, 30])))
    order = torch.tensor([7, 3, 3, len(data) - 1])
    batch = data.batch(order)
    for row, index in enumerate(order.tolist()):
        assert torch.equal(batch.actions[row], data.batch([index]).actions[0])


def test_chosen_episodes_keep_their_own_windows(tmp_path):
    store = store_of(tmp_path, coded([20, 16, 31]))
    chosen = WindowDataset(store, episodes=[2, 0])
    assert len(chosen) == 24 + 13
    assert set(chosen.episode.tolist()) == {0, 2}
    assert {int(a) // 1000 for a in chosen.batch(range(len(chosen))).actions[..., 0].flatten()} == {0, 2}
    assert torch.equal(chosen.rows("actions")[:, 0], torch.cat([2000.0 + torch.arange(31), torch.arange(20.0)]))
    assert torch.equal(chosen.rows("object")[:, 0], chosen.rows("actions")[:, 0] + 0.25)


def test_a_split_separates_episodes_and_loses_none(tmp_path):
    data = WindowDataset(store_of(tmp_path, coded([16 + n for n in range(10)])))
    train, valid = data.split(3, seed=4)
    assert sorted(train.episodes + valid.episodes) == list(range(10))
    assert len(valid.episodes) == 3
    assert len(train) + len(valid) == len(data)
    assert set(train.episode.tolist()).isdisjoint(valid.episode.tolist())
    assert data.split(3, seed=4)[1].episodes == valid.episodes
    assert any(data.split(3, seed=seed)[1].episodes != valid.episodes for seed in range(5, 9))
    assert len(data.split(fraction=0.2)[1].episodes) == 2
    assert data.split(0)[1] is None
    with pytest.raises(ValueError, match=r"must be in 0\.\.9 of 10 episodes, got 10"):
        data.split(10)


@pytest.mark.parametrize("memory", [0, 1e9])
def test_images_are_the_same_from_memory_and_from_the_store(tmp_path, memory):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (length, 6, 6, 3), dtype=np.uint8) for length in (19, 17)]
    store = store_of(
        tmp_path, [episode(f"demo_{i}", actions=np.zeros((len(f), 2)), camera=f) for i, f in enumerate(frames)]
    )
    data = WindowDataset(store, observation_keys=["camera"], image_memory=memory)
    seen = data.batch(torch.tensor([0, 12 + 3, 0])).observations["camera"]
    assert seen.dtype == torch.uint8
    expected = np.stack([frames[0][[0, 0]], frames[1][[2, 3]], frames[0][[0, 0]]])
    np.testing.assert_array_equal(seen.numpy(), expected)


def test_refused(tmp_path):
    store = store_of(tmp_path, coded([20, 15]))
    with pytest.raises(DemonstrationError, match=r"small\.hdf5 demo_1: 15 steps are shorter than the horizon of 16"):
        WindowDataset(store)
    assert len(WindowDataset(store, episodes=[0])) == 13
    with pytest.raises(ValueError, match=r"observation_keys has colour; .* has object, pose"):
        WindowDataset(store, horizon=8, observation_keys=["colour"], action_steps=4)
    with pytest.raises(ValueError, match=r"episodes must be in 0\.\.1, got \[2\]"):
        WindowDataset(store, episodes=[0, 2])
    with pytest.raises(ValueError, match=r"action_steps <= horizon - observation_steps \+ 1, got horizon=8"):
        WindowDataset(store, horizon=8, action_steps=8)
