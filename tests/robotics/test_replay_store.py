"""The replay store: what goes in comes out; damage, half-written stores and other sources are noticed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from small_demonstrations import ENV_ARGS, LIFT, random_episode, store_of, written

from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.replay_store import check_store, open_store
from domains.robotics.demonstrations.sources import store_of as store_of_file


def images(steps, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (steps, 8, 8, 3), dtype=np.uint8)


def test_episodes_lie_end_to_end(tmp_path):
    given = [random_episode(steps, seed) for seed, steps in enumerate((20, 33, 18))]
    store = store_of(tmp_path, given)
    assert store.episode_ends.tolist() == [20, 53, 71]
    assert store.episode_starts.tolist() == [0, 20, 53]
    assert store.episodes == ("demo_0", "demo_1", "demo_2")
    assert store.env_args == ENV_ARGS
    np.testing.assert_array_equal(store.actions, np.concatenate([e.actions for e in given]).astype(np.float32))
    np.testing.assert_array_equal(store.states, np.concatenate([e.states for e in given]))
    for key, array in store.arrays.items():
        np.testing.assert_array_equal(array, np.concatenate([e.observations[key] for e in given]))
    group = zarr.open_group(store.path, mode="r")
    assert group.metadata.zarr_format == 3
    assert group["data/actions"].shape == (71, 7)


def test_an_hdf5_file_becomes_a_store_once(tmp_path):
    path = written(tmp_path / "demos.hdf5", *[random_episode(20, seed) for seed in range(3)])
    store = store_of_file(path, LIFT, tmp_path / "cache")
    assert len(store) == 3
    touched = store.path / "zarr.json"
    before = touched.stat().st_mtime_ns
    again = store_of_file(path, LIFT, tmp_path / "cache")
    assert again.path == store.path
    assert touched.stat().st_mtime_ns == before
    path.touch()  # another time, the same bytes
    assert store_of_file(path, LIFT, tmp_path / "cache").source["sha256"] == store.source["sha256"]
    assert touched.stat().st_mtime_ns == before
    written(path, *[random_episode(20, seed + 10) for seed in range(3)])  # other bytes
    changed = store_of_file(path, LIFT, tmp_path / "cache")
    assert changed.source["sha256"] != store.source["sha256"]
    assert np.abs(changed.actions - store.actions).max() > 0.1


def test_damage_is_noticed(tmp_path):
    store = store_of(tmp_path, [random_episode(20, observations={"camera_image": images(20), "x": np.ones((20, 2))})])
    for damaged in ("data/x/c/0/0", "data/camera_image/c/1/0/0/0", "data/actions/c/0/0", "meta/episode_ends/c/0"):
        copy = tmp_path / "copy.zarr"
        shutil.copytree(store.path, copy)
        open_store(copy)
        (copy / damaged).unlink()
        with pytest.raises(DemonstrationError, match=r"copy\.zarr is (damaged|no replay store, or damaged)"):
            open_store(copy)
        shutil.rmtree(copy)
    frame = store.path / "data/camera_image/c/1/0/0/0"
    zarr.open_group(store.path, mode="r+")["data/camera_image"][9] = 0
    assert frame.exists()
    with pytest.raises(DemonstrationError, match="camera_image has another checksum"):
        open_store(store.path, images=True)


def test_other_folders_are_no_stores(tmp_path):
    with pytest.raises(DemonstrationError, match=r"none\.zarr is no replay store"):
        open_store(tmp_path / "none.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(DemonstrationError, match=r"other\.zarr is no replay store of this version"):
        open_store(tmp_path / "other.zarr")


def test_an_error_leaves_no_half_store(tmp_path):
    with pytest.raises(DemonstrationError, match=r"made\.hdf5 demo_1: actions is NaN"):
        store_of(tmp_path, [random_episode(20, 0), random_episode(20, 1, actions=np.full((20, 7), np.nan))])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DemonstrationError, match=r"demo_1: arrays .* \{'actions': \(7,\)\}, got \{'actions': \(6,\)\}"):
        store_of(tmp_path, [random_episode(20, 0), random_episode(20, 1, actions=np.zeros((20, 6)))])
    with pytest.raises(DemonstrationError, match=r"demo_1: arrays .*'states': \(32,\)\}, got \{'states': None\}"):
        store_of(tmp_path, [random_episode(20, 0), random_episode(20, 1, states=None)])
    with pytest.raises(DemonstrationError, match=r"small\.hdf5 holds no episode"):
        store_of(tmp_path, [])


def test_a_store_of_another_task_is_refused(tmp_path):
    store = store_of(tmp_path, [random_episode(20, 0), random_episode(17, 1)])
    assert check_store(store, LIFT, horizon=17) is store
    with pytest.raises(DemonstrationError, match=r"small\.hdf5 demo_1: 17 steps are shorter than the horizon of 18"):
        check_store(store, LIFT, horizon=18)
    can = replace(LIFT, name="can", observations={"object": 14})
    with pytest.raises(DemonstrationError, match=r"'object' must be \(14,\) for task can, got \(10,\)"):
        check_store(store, can)
    two = replace(LIFT, name="two", action_dim=14)
    with pytest.raises(DemonstrationError, match="actions must have 14 dimensions for task two, got 7"):
        check_store(store, two)
    seen = replace(LIFT, images={"agentview_image": 84})
    with pytest.raises(DemonstrationError, match="no observation 'agentview_image' for task lift; it has object"):
        check_store(store, seen)


def test_a_file_of_another_environment_is_refused(tmp_path):
    path = written(tmp_path / "demos.hdf5", random_episode(20))
    can = replace(LIFT, name="can", environment="PickPlaceCan")
    with pytest.raises(DemonstrationError, match=r"demos\.hdf5.*Lift.*PickPlaceCan"):
        store_of_file(path, can, tmp_path / "cache")
    with pytest.raises(DemonstrationError, match=r"demos\.txt is of no known kind"):
        (tmp_path / "demos.txt").write_text(json.dumps({}))
        store_of_file(tmp_path / "demos.txt", LIFT, tmp_path / "cache")


@pytest.mark.parametrize("other", [{"environment": "PickPlaceCan"}, {"absolute_actions": True}, {"control_hz": 10}])
def test_a_store_that_is_there_is_refused_like_its_file(tmp_path, other):
    path = written(tmp_path / "demos.hdf5", random_episode(20))
    store_of_file(path, LIFT, tmp_path / "cache")
    (name,) = other
    for cache in ("cache", "fresh"):
        with pytest.raises(DemonstrationError, match=rf"demos\.hdf5: the file has task\.{name}="):
            store_of_file(path, replace(LIFT, **other), tmp_path / cache)
    assert len(store_of_file(path, LIFT, tmp_path / "cache")) == 1
