"""Small episodes and stores for the tests of demonstrations."""

import numpy as np

from domains.robotics.demonstrations.episode import Episode
from domains.robotics.demonstrations.replay_store import write_store
from domains.robotics.demonstrations.schema import DemonstrationWriter
from domains.robotics.environments.env_args import env_args_of
from domains.robotics.task import TaskConfig

LIFT = TaskConfig(
    name="lift", simulator="robosuite", environment="Lift", action_dim=7, max_steps=400, demo_noise=0.25,
    observations={"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
)  # fmt: skip
ENV_ARGS = env_args_of(LIFT, version="1.5.2")


def episode(name="demo_0", actions=None, *, source="small.hdf5", **observations):
    """An episode of the given arrays."""
    return Episode(observations=observations, actions=actions, where=f"{source} {name}")


def random_episode(steps=20, seed=0, **changes):
    """A Lift-like episode of random numbers with everything that a recorded one has."""
    rng = np.random.default_rng(seed)
    widths = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    parts = {
        "observations": {key: rng.normal(size=(steps, width)).astype(np.float32) for key, width in widths.items()},
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "states": rng.normal(size=(steps, 32)),
        "rewards": np.eye(steps)[-1],
        "dones": np.eye(steps, dtype=np.int64)[-1],
        "executed": rng.uniform(-1, 1, (steps, 7)),
        "where": f"made.hdf5 demo_{seed}",
    }
    return Episode(**(parts | changes))


def store_of(folder, episodes):
    """The episodes as a replay store."""
    return write_store(folder / "small.zarr", episodes, env_args=ENV_ARGS, source={"name": "small.hdf5"})


def written(path, *episodes, validation=0):
    """The episodes as a file of robomimic's schema."""
    with DemonstrationWriter(path, ENV_ARGS) as writer:
        for each in episodes:
            writer.write(each)
        writer.split(validation)
    return path
