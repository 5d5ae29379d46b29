import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_demonstrations import episode
from small_demonstrations import store_of as replay_store
from small_policies import push_t_file, small_config

from domains.robotics.action_space import ActionSpace
from domains.robotics.batches import StepBatches, nearest_windows
from domains.robotics.demonstrations.sources import store_of
from domains.robotics.demonstrations.windows import WindowDataset
from domains.robotics.observations import ObservationEncoder
from domains.robotics.task import TaskConfig

PUSH_T = TaskConfig(
    name="push_t",
    simulator="push_t",
    environment="gym_pusht/PushT-v0",
    observations={"keypoint": 18, "agent_pos": 2},
    action_dim=2,
    max_steps=10,
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    store = store_of(push_t_file(folder / "small.npz"), PUSH_T, folder)
    return WindowDataset(store, horizon=8, action_steps=4)


def batches(windows, own=slice(None), size=50, **settings):
    return StepBatches(windows, size=size, own=own, seed=3, **settings)


def test_every_window_is_seen_once_per_epoch(windows):
    total = len(windows)
    drawn = torch.cat([batches(windows).indices(step) for step in range(3 * total // 50 + 1)])
    for epoch in range(3):
        assert drawn[epoch * total : (epoch + 1) * total].sort().values.tolist() == list(range(total))
    assert not torch.equal(drawn[:total], drawn[total : 2 * total])


def test_a_batch_may_be_larger_than_all_windows(windows):
    indices = batches(windows, size=2 * len(windows) + 7).indices(0)
    assert torch.bincount(indices).unique().tolist() == [2, 3]
    assert len(indices) == 2 * len(windows) + 7


def test_a_step_does_not_depend_on_what_was_drawn_before(windows):
    one = batches(windows)
    for step in range(9):
        one.draw(step)
    assert torch.equal(one.draw(9).actions, batches(windows).draw(9).actions)


def test_ranks_take_parts_of_one_batch(windows):
    whole = batches(windows).draw(4)
    parts = [batches(windows, own).draw(4) for own in (slice(0, 17), slice(17, 50))]
    assert torch.equal(torch.cat([part.actions for part in parts]), whole.actions)
    for key, values in whole.observations.items():
        assert torch.equal(torch.cat([part.observations[key] for part in parts]), values)
    assert whole.neighbours is None


def test_neighbours_are_the_nearest_of_other_demonstrations(windows):
    encoder = ObservationEncoder(PUSH_T, small_config())
    encoder.fit({key: windows.rows(key) for key in PUSH_T.observations})
    nearest = nearest_windows(windows, encoder, 3)
    every = encoder(windows.batch(torch.arange(len(windows))).observations)
    for index in (0, 57, len(windows) - 1):
        others = (windows.episode != windows.episode[index]).nonzero()[:, 0]
        distance = (every[others] - every[index]).norm(dim=-1)
        expected = distance.topk(3, largest=False)
        found = (every[nearest[index]] - every[index]).norm(dim=-1)
        torch.testing.assert_close(found, expected.values, rtol=1e-3, atol=1e-4)
        assert (windows.episode[nearest[index]] != windows.episode[index]).all()
    drawn = batches(windows, neighbours=nearest)
    chosen = drawn.indices(2)
    assert torch.equal(drawn.draw(2).neighbours[5], windows.batch(nearest[chosen[5]]).actions)


@pytest.fixture
def seeing(tmp_path):
    """Windows whose images stay in the store."""
    rng = np.random.default_rng(0)
    episodes = []
    for name in ("demo_0", "demo_1"):
        seen = {key: rng.random((30, width), np.float32) for key, width in PUSH_T.observations.items()}
        image = rng.integers(0, 255, (30, 6, 6, 3), dtype=np.uint8)
        episodes.append(episode(name, actions=rng.random((30, 2)), image=image, **seen))
    return WindowDataset(replay_store(tmp_path, episodes), horizon=8, action_steps=4, image_memory=0)


def test_a_neighbours_chunk_is_relative_to_the_neighbours_place(windows):
    nearest = torch.tensor([[9, 4, 30]] * len(windows))
    task = replace(PUSH_T, present={"agent_pos": [0, 1]})
    actions = ActionSpace(task, relative=True)
    every = windows.batch(torch.arange(len(windows)))
    actions.fit(every.actions, every.observations)
    drawn = batches(windows, neighbours=nearest, actions=actions).draw(2)
    seen = actions.encode(drawn.neighbours, drawn.observations)
    others = windows.batch(torch.tensor([9, 4, 30]))
    expected = actions.encode(others.actions, others.observations)
    torch.testing.assert_close(seen, expected.expand_as(seen), rtol=1e-4, atol=1e-4)
    plain = batches(windows, neighbours=nearest, actions=ActionSpace(task)).draw(2)
    assert torch.equal(plain.neighbours[7], others.actions)


def test_neighbours_are_found_without_reading_images(seeing, monkeypatch):
    encoder = ObservationEncoder(PUSH_T, small_config())
    encoder.fit({key: seeing.rows(key) for key in PUSH_T.observations})
    monkeypatch.setattr(type(seeing.arrays["image"]), "gather", lambda *_: pytest.fail("an image is read"))
    assert nearest_windows(seeing, encoder, 2).shape == (len(seeing), 2)


def test_the_next_batch_of_stored_images_is_read_while_this_one_is_used(seeing, monkeypatch):
    drawn, read = batches(seeing, size=7), []
    gather = type(seeing.arrays["image"]).gather
    monkeypatch.setattr(
        type(seeing.arrays["image"]),
        "gather",
        lambda array, steps: read.append(threading.current_thread()) or gather(array, steps),
    )
    for step in (0, 1, 2, 8, 9, 3):  # a run may begin anywhere
        batch = drawn.draw(step)
        expected = seeing.batch(batches(seeing, size=7).indices(step))
        assert torch.equal(batch.actions, expected.actions)
        for key, values in expected.observations.items():
            assert torch.equal(batch.observations[key], values)
    assert drawn._ahead[0] == 4
    drawn._ahead[1].result()
    ahead = [thread for thread in read if thread is not threading.main_thread()]
    assert len(ahead) == 9  # six that were used, the one after the last, and two where another step was asked for


def test_neighbours_need_two_demonstrations(windows):
    encoder = ObservationEncoder(PUSH_T, small_config())
    with pytest.raises(ValueError, match="two demonstrations"):
        nearest_windows(windows.subset([0]), encoder, 3)
