"""Readers of human data: layouts of PushT, real files where they lie beside the checkout, stored states played back."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from small_demonstrations import LIFT

from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.human import otherwise
from domains.robotics.demonstrations.push_t_data import PUBLISHED_ACTIONS, actions_digest, push_t_episodes
from domains.robotics.demonstrations.sources import load_demonstrations
from domains.robotics.demonstrations.windows import WindowDataset
from domains.robotics.task import TaskConfig

PUSH_T = TaskConfig(
    name="push_t", simulator="push_t", environment="gym_pusht/PushT-v0", action_dim=2, max_steps=300, control_hz=10,
    observations={"keypoint": 18, "agent_pos": 2},
)  # fmt: skip
SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name):
    """A file beside the checkout, or a skip."""
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    return SHARED / name


def arrays(steps=40, ends=(18, 40)):
    rng = np.random.default_rng(0)
    shapes = {"action": (2,), "state": (5,), "keypoint": (9, 2), "img": (6, 6, 3)}
    made = {key: rng.integers(1, 255, (steps, *shape)).astype(np.float32) for key, shape in shapes.items()}
    return made | {"episode_ends": np.array(ends)}


def npz(path, **given):
    np.savez(path, **given)
    return path


def folder(path, **given):
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for key, array in given.items():
        name = "meta/episode_ends" if key == "episode_ends" else f"data/{key}"
        root.create_array(name, data=array, chunks=(16, *array.shape[1:]))
    return path


@pytest.mark.parametrize("kind", [npz, folder])
def test_both_layouts_give_the_same_windows(tmp_path, kind):
    given = arrays()
    path = kind(tmp_path / {npz: "replay.npz", folder: "replay.zarr"}[kind], **given)
    demos = DemosConfig(source="human", path=str(path), cache=str(tmp_path / "cache"))
    task = replace(PUSH_T, images={"image": 6})
    store = load_demonstrations(task, demos, horizon=16)
    assert store.episode_ends.tolist() == [18, 40]
    data = WindowDataset(store, observation_keys=["keypoint", "agent_pos", "image"])
    batch = data.batch([0, len(data) - 1])
    np.testing.assert_array_equal(batch.actions[0], given["action"][[0, *range(15)]])
    np.testing.assert_array_equal(batch.actions[1], given["action"][[*range(31, 40), *[39] * 7]])
    np.testing.assert_array_equal(batch.observations["keypoint"][1], given["keypoint"][[31, 32]].reshape(2, 18))
    np.testing.assert_array_equal(batch.observations["agent_pos"][1], given["state"][[31, 32], :2])
    np.testing.assert_array_equal(batch.observations["image"][1], given["img"][[31, 32]])


def test_damaged_replays_are_refused_by_name(tmp_path):
    given = arrays()
    path = folder(tmp_path / "replay.zarr", **given)
    (path / "data" / "state" / "1.0").unlink()
    with pytest.raises(DemonstrationError, match=r"replay\.zarr: state is incomplete, 2 of 3 chunks"):
        list(push_t_episodes(path, ["agent_pos"]))
    cut = npz(tmp_path / "cut.npz", **given)
    cut.write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(DemonstrationError, match=r"cut\.npz cannot be read"):
        list(push_t_episodes(cut, ["agent_pos"]))
    for ends in ((18, 41), (18, 39), (18, 18, 40), (0, 40), ()):
        with pytest.raises(DemonstrationError, match="episode_ends must rise from above 0 to the 40 steps"):
            list(
                push_t_episodes(npz(tmp_path / "ends.npz", **given | {"episode_ends": np.array(ends, int)}), ["state"])
            )
    with pytest.raises(DemonstrationError, match=r"ends\.npz: state must have the 40 steps of action"):
        list(push_t_episodes(npz(tmp_path / "ends.npz", **given | {"state": np.ones((39, 5))}), ["state"]))
    bad = given["action"].copy()
    bad[20] = np.nan
    with pytest.raises(DemonstrationError, match=r"nan\.npz episode_1: actions is NaN or infinite at step 2"):
        list(push_t_episodes(npz(tmp_path / "nan.npz", **given | {"action": bad}), ["state"]))
    del given["img"]
    with pytest.raises(DemonstrationError, match=r"low\.npz: no img; .*Pictures are in the zarr folder"):
        list(push_t_episodes(npz(tmp_path / "low.npz", **given), ["image"]))
    with pytest.raises(DemonstrationError, match="no observation colour; PushT has agent_pos, image, keypoint, state"):
        list(push_t_episodes(tmp_path / "low.npz", ["colour"]))
    for content in (np.array([{}]), np.ones(3)):  # pickled; a single array
        np.save(tmp_path / "other.npy", content, allow_pickle=True)
        (tmp_path / "other.npy").rename(tmp_path / "other.npz")
        with pytest.raises(DemonstrationError, match=r"other\.npz cannot be read"):
            list(push_t_episodes(tmp_path / "other.npz", ["state"]))


def test_what_no_one_published_is_refused_in_words(tmp_path):
    kitchen = replace(PUSH_T, name="kitchen", simulator="kitchen")
    with pytest.raises(DemonstrationError, match=r"no human .* of task kitchen .* demos\.path=FILE") as refused:
        load_demonstrations(kitchen, DemosConfig(source="human", cache=str(tmp_path)))
    assert "data/demo_<k>/ with obs/keypoint [T, 18], obs/agent_pos [T, 2] and actions [T, 2]" in str(refused.value)
    assert "scripted" not in str(refused.value)  # there is no expert
    with pytest.raises(DemonstrationError, match=r"task block_push .*, or use demos\.source=scripted"):
        load_demonstrations(replace(kitchen, name="block_push"), DemosConfig(source="human", cache=str(tmp_path)))
    assert "scripted" in otherwise("tool_hang") and "scripted" not in otherwise("transport")
    with pytest.raises(DemonstrationError, match=r"demos\.path=nowhere\.hdf5 does not exist"):
        load_demonstrations(PUSH_T, DemosConfig(source="human", path="nowhere.hdf5", cache=str(tmp_path)))
    path = npz(tmp_path / "replay.npz", **arrays())
    with pytest.raises(DemonstrationError, match=r"replay\.npz has demonstrations of PushT, the task is lift"):
        load_demonstrations(LIFT, DemosConfig(source="human", path=str(path), cache=str(tmp_path)))


def test_the_published_push_t_data(tmp_path):
    path = shared("pusht_low_dim.npz")
    store = load_demonstrations(PUSH_T, DemosConfig(source="human", path=str(path), cache=str(tmp_path)), horizon=16)
    lengths = store.episode_ends - store.episode_starts
    assert (len(store), len(store.actions), lengths.min(), lengths.max()) == (206, 25650, 49, 246)
    assert len(WindowDataset(store)) == 25650 - 206 * 7
    assert actions_digest(path) == PUBLISHED_ACTIONS
    # What is stored and what the simulator computes from the stored state are the same points.
    keypoints = store.arrays["keypoint"].reshape(-1, 9, 2)
    assert np.abs(keypoints.mean(1) - store.states[:, 2:4]).max() < 60


def test_real_images_are_read_from_their_folder(tmp_path):
    path = shared("pusht/pusht_cchi_v7_replay.zarr")
    episodes = push_t_episodes(path, ["image", "agent_pos"])
    first = next(episodes)
    frames = first.observations["image"]
    assert frames.shape == (161, 96, 96, 3)
    assert frames.dtype == np.uint8
    low = next(push_t_episodes(shared("pusht_low_dim.npz"), ["agent_pos"]))
    np.testing.assert_array_equal(first.observations["agent_pos"], low.observations["agent_pos"])
    np.testing.assert_array_equal(first.actions, low.actions)


@pytest.mark.slow
def test_states_of_real_people_are_played_back(tmp_path):
    """Three people's Lift demonstrations of robosuite 1.4: states alone; every one ends in success."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    from domains.robotics.demonstrations.states import observe_states

    path, out = shared("robosuite141_lift_human.hdf5"), tmp_path / "lift.hdf5"
    demos = DemosConfig(source="human", path=str(path), cache=str(tmp_path))
    with pytest.raises(
        DemonstrationError, match=r"no observation object.*; it has none. It has simulator states.* states=<this file>"
    ):
        load_demonstrations(LIFT, demos)
    with pytest.raises(DemonstrationError, match=r"demo_1: cannot be played back: .*left away by models=false"):
        observe_states(LIFT, path, out, progress=False)
    assert observe_states(LIFT, path, out, models=False, progress=False) == [482, 510, 392]
    store = load_demonstrations(LIFT, replace(demos, path=str(out)), horizon=16)
    assert store.episode_ends.tolist() == [482, 992, 1384]
    with h5py.File(out) as file, h5py.File(path) as raw:
        for index, name in enumerate(("demo_1", "demo_2", "demo_3")):
            demo = file[f"data/demo_{index}"]
            np.testing.assert_array_equal(demo["states"], raw[f"data/{name}/states"])
            np.testing.assert_array_equal(demo["actions"], raw[f"data/{name}/actions"])
            # A state is time, positions (arm 7, fingers 2, cube 3 + 4), velocities.
            np.testing.assert_allclose(demo["obs/object"][:, :3], demo["states"][:, 10:13], atol=1e-6)
            np.testing.assert_allclose(demo["obs/robot0_gripper_qpos"], demo["states"][:, 8:10], atol=1e-6)
            assert demo["rewards"][-1] == 1
            assert demo["rewards"][0] == 0
