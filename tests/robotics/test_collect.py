"""Collection: the same for any number of processes, continued after an interruption, made once; then the real Lift."""

import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from small_demonstrations import ENV_ARGS, LIFT, random_episode

from domains.robotics.collect import RobotCollectConfig
from domains.robotics.demonstrations import scripted
from domains.robotics.demonstrations.cache import cache_folder, one_maker
from domains.robotics.demonstrations.config import EVALUATION_SEED, DemosConfig
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.schema import DemonstrationFile, DemonstrationWriter
from domains.robotics.demonstrations.scripted import collect, demonstrations_path, scripted_demonstrations, summary
from domains.robotics.demonstrations.sources import load_demonstrations
from domains.robotics.demonstrations.windows import WindowDataset
from domains.robotics.experts import EXPERT_REVISIONS
from domains.robotics.task import PoseConfig
from drifting.training.config import typed
from drifting.training.errors import ConfigError


@dataclass
class Scribe:
    """Records random numbers in place of a simulation: seeds 1, 5, 9, ... fail; notes what it was asked for."""

    task: object
    noise: float
    noise_steps: float = 0.0
    killed_at: int = -1

    def record_into(self, folder: Path, seed: int):
        path = folder / f"{seed}.hdf5"
        if path.exists():
            return path
        with (folder.parent / "asked.txt").open("a") as notes:
            notes.write(f"{seed}\n")
        if seed == self.killed_at:
            raise KeyboardInterrupt
        if seed % 4 == 1:
            return None
        with DemonstrationWriter(path, ENV_ARGS) as writer:
            writer.write(random_episode(20 + seed % 7, seed, attributes={"seed": str(seed)}))
        return path


def asked(folder):
    notes = folder / "asked.txt"
    return sorted(int(line) for line in notes.read_text().split()) if notes.exists() else []


def seeds_in(path):
    with DemonstrationFile(path) as file:
        return [int(episode.attributes["seed"]) for episode in file.episodes()]


def actions_in(path):
    with DemonstrationFile(path) as file:
        return np.concatenate([episode.actions for episode in file.episodes()])


@pytest.fixture
def scribes(monkeypatch):
    monkeypatch.setattr(scripted, "Recorder", Scribe)


def test_the_first_seeds_that_succeed_are_kept_in_order(tmp_path, scribes):
    path = tmp_path / "demos.hdf5"
    collect(LIFT, episodes=10, seed=0, noise=0.25, path=path, progress=False)
    assert seeds_in(path) == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12]
    with DemonstrationFile(path) as file:
        assert (file.collected["attempts"], file.collected["failed"], file.collected["noise"]) == (13, 3, 0.25)
        masks = file.masks()
        assert len(masks["valid"]) == 1
        assert sorted(masks["train"] + masks["valid"]) == sorted(file.names)
    assert summary(path).startswith("10 episodes, 228 steps, 0.2 MB, 10 of 13 attempts succeeded with noise 0.25: ")
    assert {entry.name for entry in tmp_path.iterdir()} == {"demos.hdf5", "asked.txt"}


@pytest.mark.slow
def test_many_processes_make_the_same_file(tmp_path, scribes):
    one, two = tmp_path / "one.hdf5", tmp_path / "two.hdf5"
    collect(LIFT, episodes=7, seed=0, noise=0.25, path=one, progress=False)
    collect(LIFT, episodes=7, seed=0, noise=0.25, path=two, workers=2, progress=False)
    assert seeds_in(one) == seeds_in(two)
    np.testing.assert_array_equal(actions_in(one), actions_in(two))
    with DemonstrationFile(one) as first, DemonstrationFile(two) as second:
        assert first.collected == second.collected


POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from domains.robotics.demonstrations.end_with_parent import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
        pid = pool.submit(os.getpid).result()
        waiting = [pool.submit(time.sleep, 60) for _ in range(2)]
        print(pid, flush=True)
        sys.stdin.read()
"""


def test_processes_end_with_a_command_that_is_killed(tmp_path, monkeypatch):
    (tmp_path / "pool.py").write_text(POOL)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    call = [sys.executable, str(tmp_path / "pool.py")]
    command = subprocess.Popen(call, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker = int(command.stdout.readline())
    command.kill()
    command.wait()
    # The pipe ends with the last process that has it.
    ended, _, _ = select.select([command.stdout], [], [], 20)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended
    command.stdin.close(), command.stdout.close()
    called = []
    monkeypatch.setattr(scripted, "end_with_parent", lambda: called.append(True))
    monkeypatch.setattr(scripted, "_worker", None)
    scripted._be_worker(Scribe(LIFT, 0.25))
    assert called


def test_an_interrupted_collection_is_continued(tmp_path, monkeypatch):
    path = tmp_path / "demos.hdf5"
    monkeypatch.setattr(scripted, "Recorder", lambda *given: Scribe(*given, killed_at=6))
    with pytest.raises(KeyboardInterrupt):
        collect(LIFT, episodes=6, seed=0, noise=0.25, path=path, progress=False)
    assert not path.exists()
    assert asked(tmp_path) == list(range(7))
    (tmp_path / "asked.txt").unlink()
    monkeypatch.setattr(scripted, "Recorder", Scribe)
    collect(LIFT, episodes=6, seed=0, noise=0.25, path=path, progress=False)
    assert asked(tmp_path) == [1, 5, 6, 7]  # successes are not repeated
    assert seeds_in(path) == [0, 2, 3, 4, 6, 7]


def test_attempts_of_other_settings_are_not_continued(tmp_path, monkeypatch):
    path = tmp_path / "demos.hdf5"
    monkeypatch.setattr(scripted, "Recorder", lambda *given: Scribe(*given, killed_at=6))
    with pytest.raises(KeyboardInterrupt):
        collect(LIFT, episodes=6, seed=0, noise=0.25, path=path, progress=False)
    (tmp_path / "asked.txt").unlink()
    monkeypatch.setattr(scripted, "Recorder", Scribe)
    collect(LIFT, episodes=6, seed=0, noise=0.1, path=path, progress=False)
    assert asked(tmp_path) == list(range(8))


def test_an_expert_that_fails_too_often_is_given_up(tmp_path, monkeypatch):
    class Clumsy(Scribe):
        def record_into(self, folder, seed):
            return None if seed % 6 else super().record_into(folder, seed)

    monkeypatch.setattr(scripted, "Recorder", Clumsy)
    message = r"expert of lift succeeded in 6 of 35 episodes from seed 0 on with noise 0\.25, 50 were asked for"
    with pytest.raises(DemonstrationError, match=message):
        collect(LIFT, episodes=50, seed=0, noise=0.25, path=tmp_path / "demos.hdf5", progress=False)
    assert not (tmp_path / "demos.hdf5").exists()


def test_demonstrations_never_have_the_seeds_of_evaluation(tmp_path, scribes):
    with pytest.raises(DemonstrationError, match=r"2 of 2 episodes from seed 99998 on .* choose another demos\.seed"):
        collect(LIFT, episodes=3, seed=EVALUATION_SEED - 2, noise=0, path=tmp_path / "demos.hdf5", progress=False)
    with pytest.raises(ValueError, match=r"demos\.seed must be in 0\.\.99999: evaluation begins at 100000"):
        DemosConfig(seed=EVALUATION_SEED)


def test_one_file_per_settings(tmp_path):
    config = DemosConfig(cache=str(tmp_path))
    path = demonstrations_path(LIFT, config)
    assert path.parent == tmp_path
    assert path.name.startswith("lift-")
    same = [replace(config, workers=4), replace(config, validation_episodes=1), replace(config, noise=LIFT.demo_noise)]
    assert all(demonstrations_path(LIFT, each) == path for each in same)
    other = [replace(config, episodes=51), replace(config, seed=1), replace(config, noise=0.1)]
    other.append(replace(config, noise_steps=3.0))
    tasks = [replace(LIFT, absolute_actions=True), replace(LIFT, images={"agentview_image": 84})]
    paths = {demonstrations_path(LIFT, each) for each in other} | {demonstrations_path(task, config) for task in tasks}
    assert len(paths | {path}) == 7
    lasting, seen = replace(LIFT, demo_noise_steps=3.0), replace(LIFT, poses={"hand": PoseConfig("object", "object")})
    assert demonstrations_path(lasting, config) == demonstrations_path(LIFT, other[-1])
    assert demonstrations_path(lasting, replace(config, noise_steps=0.0)) == demonstrations_path(seen, config) == path


def test_another_expert_shows_other_demonstrations(tmp_path, monkeypatch):
    config = DemosConfig(cache=str(tmp_path))
    can = replace(LIFT, name="can")
    before = [demonstrations_path(task, config) for task in (LIFT, replace(LIFT, name="lift_image"), can)]
    monkeypatch.setitem(EXPERT_REVISIONS, "lift", 1)
    after = [demonstrations_path(task, config) for task in (LIFT, replace(LIFT, name="lift_image"), can)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]


def test_the_cache_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DRIFTING_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "drifting" / "demonstrations"
    monkeypatch.setenv("DRIFTING_CACHE", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other"
    assert cache_folder("~/third") == tmp_path / "third"


def test_demonstrations_are_made_once_and_loaded(tmp_path, scribes):
    config = DemosConfig(episodes=5, cache=str(tmp_path))
    store = load_demonstrations(LIFT, config, horizon=16, progress=False)
    assert len(store) == 5
    assert asked(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert load_demonstrations(LIFT, config, progress=False).path == store.path
    assert len(asked(tmp_path)) == 7
    with pytest.raises(DemonstrationError, match="20 steps are shorter than the horizon of 24"):
        load_demonstrations(LIFT, config, horizon=24, progress=False)


def test_who_asks_second_waits_for_the_first(tmp_path, scribes):
    config = DemosConfig(episodes=5, cache=str(tmp_path))
    path = demonstrations_path(LIFT, config)
    with one_maker(path):
        second = threading.Thread(target=scripted_demonstrations, args=(LIFT, config), kwargs={"progress": False})
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert asked(tmp_path) == []
        path.touch()
    second.join(10)
    assert not second.is_alive()
    assert asked(tmp_path) == []


# The real simulator: two episodes of Lift, recorded once.


@pytest.fixture(scope="module")
def lift(tmp_path_factory):
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    collect(LIFT, episodes=2, seed=7, noise=0.25, path=path, progress=False)
    return path


@pytest.fixture(scope="module")
def environment():
    from domains.robotics.environments import make_environment

    environment = make_environment(LIFT)
    yield environment
    environment.close()


def test_noise_is_executed_and_labels_are_clean(lift):
    with DemonstrationFile(lift) as file:
        episodes = list(file.episodes())
    labels = np.concatenate([episode.actions for episode in episodes])
    noise = np.concatenate([episode.executed for episode in episodes]) - labels
    inside = np.abs(labels) < 0.25  # elsewhere the range of the actions cuts it
    assert 0.2 < noise[inside].std() < 0.3
    assert abs(noise[inside].mean()) < 0.05
    # The gripper is open, then closed, without noise.
    assert set(np.abs(labels[:, 6])) == {1.0}
    assert all(episode.rewards[-1] == 1 and episode.rewards[:-1].sum() == 0 for episode in episodes)
    assert all(episode.dones.tolist() == [0] * (len(episode) - 1) + [1] for episode in episodes)


def test_what_was_executed_leads_through_the_stored_states_to_success(lift, environment):
    with DemonstrationFile(lift) as file:
        for episode in file.episodes():
            options = {"state": episode.states[0], "model": episode.attributes["model_file"]}
            seen, _ = environment.reset(seed=0, options=options)
            for step, action in enumerate(episode.executed):
                # The stored model has its sizes rounded.
                np.testing.assert_allclose(environment.unwrapped.get_state(), episode.states[step], atol=1e-3)
                for key, value in seen.items():
                    np.testing.assert_allclose(value, episode.observations[key][step], atol=1e-4)
                seen, _, success, _, _ = environment.step(action)
                assert success == (step == len(episode) - 1)


def test_stored_states_are_played_back(lift, environment):
    """What robosuite shows after a step is one substep, 2 ms, older than the state; a restored state shows itself."""
    from domains.robotics.demonstrations.states import played_states

    with DemonstrationFile(lift) as file:
        for episode in file.episodes():
            for step, (seen, success) in enumerate(played_states(environment, episode)):
                assert not success
                np.testing.assert_allclose(seen["object"][:3], episode.states[step, 10:13], atol=1e-6)
                recorded = episode.observations["robot0_eef_pos"][step]
                np.testing.assert_allclose(seen["robot0_eef_pos"], recorded, atol=1e-6 if step == 0 else 0.005)


def test_robomimic_reads_the_recorded_file(lift):
    data = pytest.importorskip("robomimic.utils.dataset", reason="robomimic is not installed")
    file_utils = pytest.importorskip("robomimic.utils.file_utils")
    obs_utils = pytest.importorskip("robomimic.utils.obs_utils")
    keys = list(LIFT.observations)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys, "rgb": []}})
    shapes = file_utils.get_shape_metadata_from_dataset(str(lift), all_obs_keys=keys)
    assert (shapes["ac_dim"], shapes["all_shapes"]["object"]) == (7, [10])
    assert file_utils.get_env_metadata_from_dataset(str(lift))["env_name"] == "Lift"
    read = data.SequenceDataset(
        str(lift), obs_keys=keys, dataset_keys=("actions", "rewards", "dones"), frame_stack=2, seq_length=15
    )
    assert len(read) == len(actions_in(lift))
    actions = read[3]["actions"]
    np.testing.assert_allclose(actions[1], actions_in(lift)[3])


def test_windows_of_the_recorded_file(lift, tmp_path):
    config = DemosConfig(source="human", path=str(lift), cache=str(tmp_path))
    data = WindowDataset(load_demonstrations(LIFT, config, horizon=16))
    batch = data.batch(range(len(data)))
    assert batch.observations["object"].shape == (len(data), 2, 10)
    assert batch.actions.shape == (len(data), 16, 7)
    assert batch.actions.abs().max() <= 1


@pytest.mark.slow
def test_two_simulators_record_what_one_does(lift, tmp_path):
    path = tmp_path / "two.hdf5"
    collect(LIFT, episodes=2, seed=7, noise=0.25, path=path, workers=2, progress=False)
    assert seeds_in(path) == seeds_in(lift)
    np.testing.assert_array_equal(actions_in(path), actions_in(lift))


@pytest.mark.slow
def test_absolute_labels_are_the_poses_that_the_displacements_lead_to(lift, tmp_path):
    """Executed in an environment of absolute actions they give the same motion; made from stored states, the same."""
    from domains.robotics.demonstrations.states import observe_states
    from domains.robotics.environments import make_environment

    absolute = replace(LIFT, absolute_actions=True)
    path = tmp_path / "absolute.hdf5"
    collect(absolute, episodes=2, seed=7, noise=0.25, path=path, progress=False)
    environment = make_environment(absolute)
    with DemonstrationFile(path) as file, DemonstrationFile(lift) as plain:
        for episode, displaced in zip(file.episodes(), plain.episodes(), strict=True):
            np.testing.assert_array_equal(episode.states, displaced.states)
            environment.reset(seed=0, options={"state": episode.states[0], "model": episode.attributes["model_file"]})
            for step, action in enumerate(episode.executed):
                np.testing.assert_allclose(environment.unwrapped.get_state(), episode.states[step], atol=1e-3)
                success = environment.step(action)[2]
            assert success
    again = tmp_path / "again.hdf5"
    observe_states(absolute, lift, again, progress=False)
    np.testing.assert_allclose(actions_in(again), actions_in(path), atol=1e-6)
    environment.close()


@pytest.mark.slow
def test_pictures_are_recorded_and_can_be_made_from_states(lift, tmp_path):
    """The same seed with a camera: the same motion; pictures of stored states are those of the recording."""
    from domains.robotics.demonstrations.states import observe_states

    seeing = replace(LIFT, images={"agentview_image": 32})
    path, again = tmp_path / "seen.hdf5", tmp_path / "again.hdf5"
    collect(seeing, episodes=1, seed=7, noise=0.25, path=path, progress=False)
    config = DemosConfig(source="human", path=str(path), cache=str(tmp_path))
    frames = WindowDataset(load_demonstrations(seeing, config, horizon=16)).rows("agentview_image").numpy()
    steps = len(frames)
    assert frames.shape == (steps, 32, 32, 3)
    assert frames.std() > 10
    np.testing.assert_array_equal(actions_in(path), actions_in(lift)[:steps])
    observe_states(seeing, lift, again, names=["demo_0"], progress=False)
    with DemonstrationFile(again) as file:
        made = file.episode("demo_0").observations["agentview_image"]
    frames, made = frames.astype(int), made.astype(int)
    assert np.abs(made[0] - frames[0]).mean() < 0.05
    # Later ones show a moving arm, one substep of 25 further.
    assert np.abs(made - frames).mean() < np.abs(np.diff(frames, axis=0)).mean() / 3


# The command.


def test_a_task_without_an_expert_ends_with_one_line(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "domains.robotics.collect", "task=transport", f"demos.cache={tmp_path}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: there is no scripted expert for task=transport, only for lift, can")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "given, message",
    [
        ({"states": "raw.hdf5"}, "out must be a new file, where states is given, got ''"),
        ({"demos": {"source": "human"}}, r"demos\.source must be scripted"),
        ({"demos": {"path": "x.hdf5"}}, r"demos\.path must be left away with demos\.source=scripted"),
        ({"demos": {"noise": -1}}, r"demos\.noise must be at least 0 and finite, or null for the task's, got -1"),
        ({"demos": {"noise_steps": -1}}, r"demos\.noise_steps must be at least 0 and finite, or null .*, got -1"),
        ({"demos": {"episode": 3}}, "episode"),
    ],
)
def test_refused_settings(given, message):
    base = OmegaConf.load(Path(__file__).parents[2] / "configs" / "task" / "lift.yaml")
    with pytest.raises(ConfigError, match=message):
        typed({"task": base} | given, RobotCollectConfig)
