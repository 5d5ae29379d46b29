"""What torchrun and SLURM say about a process."""

import pytest

from drifting.training.errors import ConfigError
from drifting.training.launcher import Placement, read_placement

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29501",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567",
    "MASTER_ADDR": "head",
}


def test_a_process_that_nobody_launched_is_alone():
    assert read_placement({"PATH": "/bin"}) == Placement(rank=0, size=1, local_rank=0, local_size=1)


def test_torchrun():
    assert read_placement(TORCHRUN) == Placement(5, 8, 1, 4, "head", "29501")
    assert read_placement(SLURM | TORCHRUN | {"RANK": "6"}).rank == 6  # torchrun inside a SLURM job


def test_slurm():
    assert read_placement(SLURM) == Placement(5, 8, 1, 4, "head", "24567")
    assert read_placement(SLURM | {"MASTER_PORT": "29500"}).port == "29500"
    one_node = SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "8"}
    del one_node["MASTER_ADDR"]
    assert read_placement(one_node) == Placement(5, 8, 1, 8, "127.0.0.1", "24567")


def test_a_shell_in_a_slurm_allocation_is_one_process():
    batch_script = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert read_placement(batch_script).size == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (TORCHRUN | {"LOCAL_RANK": ""}, "LOCAL_RANK must be a number as torchrun sets it, got ''"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR or MASTER_PORT is not"),
        (SLURM | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set.*scontrol show hostnames"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, "every node must run as many tasks, SLURM gives 4,3"),
    ],
)
def test_what_is_missing_is_named(environment, said):
    with pytest.raises(ConfigError, match=said):
        read_placement(environment)
