import pytest
import torch
from small_policies import push_t_file, small_config

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


def test_neighbours_need_two_demonstrations(windows):
    encoder = ObservationEncoder(PUSH_T, small_config())
    with pytest.raises(ValueError, match="two demonstrations"):
        nearest_windows(windows.subset([0]), encoder, 3)
