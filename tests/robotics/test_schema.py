"""robomimic's schema: round trip, what robomimic's own reader makes of it, atomicity, damage."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from small_demonstrations import ENV_ARGS, random_episode, written

from domains.robotics.demonstrations.episode import DemonstrationError, check_episode
from domains.robotics.demonstrations.schema import DemonstrationFile, DemonstrationWriter


def test_what_is_written_is_read(tmp_path):
    episodes = [
        random_episode(steps, seed, attributes={"model_file": "<mujoco/>"}) for seed, steps in enumerate((20, 31))
    ]
    path = written(tmp_path / "demos.hdf5", *episodes, validation=1)
    with DemonstrationFile(path) as file:
        assert file.names == ["demo_0", "demo_1"]
        assert file.env_args == ENV_ARGS
        assert sorted(file.masks()["train"] + file.masks()["valid"]) == ["demo_0", "demo_1"]
        for read, given in zip(file.episodes(), episodes, strict=True):
            for name in ("actions", "states", "rewards", "dones", "executed"):
                np.testing.assert_array_equal(getattr(read, name), getattr(given, name))
            for key, value in given.observations.items():
                np.testing.assert_array_equal(read.observations[key], value)
                np.testing.assert_array_equal(read.next_observations[key][:-1], value[1:])
            assert read.attributes["model_file"] == "<mujoco/>"
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 51
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        assert file["data/demo_1"].attrs["num_samples"] == 31
        assert file["mask/train"].dtype.kind == "S"


def test_episodes_are_in_the_order_of_their_numbers(tmp_path):
    path = written(tmp_path / "demos.hdf5", *[random_episode(5 + n, n) for n in range(11)])
    with DemonstrationFile(path) as file:
        assert [len(episode) for episode in file.episodes(["object"])] == [5 + n for n in range(11)]


def test_robomimic_reads_the_file(tmp_path):
    """Its own dataset: number of windows, padding at both ends, frame stack, the filter of the mask."""
    data = pytest.importorskip("robomimic.utils.dataset", reason="robomimic is not installed")
    obs_utils = pytest.importorskip("robomimic.utils.obs_utils")
    episodes = [random_episode(20, seed) for seed in range(4)]
    path = written(tmp_path / "demos.hdf5", *episodes, validation=1)
    keys = list(episodes[0].observations)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys, "rgb": []}})
    read = data.SequenceDataset(
        str(path), obs_keys=keys, dataset_keys=("actions", "rewards", "dones"), frame_stack=2, seq_length=15,
        pad_frame_stack=True, pad_seq_length=True, hdf5_cache_mode="low_dim", filter_by_attribute="train",
    )  # fmt: skip
    assert len(read) == 3 * 20
    with DemonstrationFile(path) as file:
        first = file.episode(file.masks()["train"][0])
    window = read[0]
    np.testing.assert_allclose(window["obs"]["object"], first.observations["object"][[0, *range(15)]], rtol=1e-6)
    np.testing.assert_allclose(
        window["next_obs"]["object"], first.observations["object"][[1, *range(1, 16)]], rtol=1e-6
    )
    np.testing.assert_allclose(read[19]["actions"][1:], first.actions[[19] * 15], rtol=1e-6)


def test_images_stand_in_obs_alone(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    path = written(tmp_path / "demos.hdf5", random_episode(12, observations={"camera_image": frames}))
    with DemonstrationFile(path) as file:
        read = file.episode("demo_0")
    np.testing.assert_array_equal(read.observations["camera_image"], frames)
    assert read.next_observations is None


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = written(tmp_path / "demos.hdf5", random_episode(20, 0))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="simulator"), DemonstrationWriter(path, ENV_ARGS) as writer:
        writer.write(random_episode(20, 1))
        assert path.read_bytes() == before
        raise RuntimeError("the simulator died")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = written(tmp_path / "demos.hdf5", random_episode(200, 0))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DemonstrationError, match=r"demos\.hdf5 cannot be read as HDF5, it is truncated"):
        DemonstrationFile(path)
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(DemonstrationError, match=r"text\.hdf5 cannot be read as HDF5"):
        DemonstrationFile(tmp_path / "text.hdf5")
    with pytest.raises(DemonstrationError, match=r"none\.hdf5 does not exist"):
        DemonstrationFile(tmp_path / "none.hdf5")


def test_other_hdf5_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["numbers"] = [1]
    with pytest.raises(DemonstrationError, match=r"other\.hdf5 has no group 'data'"):
        DemonstrationFile(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(DemonstrationError, match=r"empty\.hdf5 holds no episode data/demo_<i>"):
        DemonstrationFile(tmp_path / "empty.hdf5")


def test_states_without_observations_name_the_command_that_fills_them(tmp_path):
    path = written(tmp_path / "raw.hdf5", random_episode(20, observations={}))
    with DemonstrationFile(path) as file:
        assert len(file.episode("demo_0")) == 20
        with pytest.raises(
            DemonstrationError,
            match=r"raw\.hdf5 demo_0: no observation object; it has none. .* states=<this file> out=",
        ):
            file.episode("demo_0", ["object"])
    path = written(tmp_path / "demos.hdf5", random_episode(20))
    with (
        DemonstrationFile(path) as file,
        pytest.raises(DemonstrationError, match=r"demo_0: no observation colour; it has object, robot0_eef_pos"),
    ):
        file.episode("demo_0", ["object", "colour"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"actions": np.full((20, 7), np.nan)}, r"made\.hdf5 demo_0: actions is NaN or infinite at step 0"),
        ({"states": np.r_[np.zeros((7, 32)), np.full((13, 32), np.inf)]}, "states is NaN or infinite at step 7"),
        ({"observations": {"object": np.full((20, 10), -np.inf)}}, "obs/object is NaN or infinite at step 0"),
        ({"rewards": np.zeros(19)}, "rewards has 19 steps, actions have 20"),
        ({"observations": {"object": np.zeros((21, 10))}}, "obs/object has 21 steps, actions have 20"),
        ({"actions": np.zeros(20)}, r"actions must be \[T, A\], got \[20\]"),
    ],
)
def test_bad_numbers_name_file_episode_and_array(changes, message):
    with pytest.raises(DemonstrationError, match=message):
        check_episode(random_episode(20, **changes))


def test_a_task_s_demands_name_what_differs():
    episode = random_episode(20)
    assert check_episode(episode, widths={"object": 10}, action_dim=7) is episode
    with pytest.raises(DemonstrationError, match="actions must have 14 dimensions for this task, got 7"):
        check_episode(episode, action_dim=14)
    with pytest.raises(DemonstrationError, match=r"'object' must be \[T, 14\], got \[T, 10\]"):
        check_episode(episode, widths={"object": 14})
    with pytest.raises(DemonstrationError, match="no observation 'state'; it has object, robot0_eef_pos"):
        check_episode(episode, widths={"state": 5})
    assert check_episode(replace(episode, states=None)).states is None
