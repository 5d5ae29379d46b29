"""The same training on 1, 2 and 4 ranks, in every mode: one result. Twenty steps of a small transformer; gloo, CPU."""

import pytest
import torch
from parallel_cases import CASES, alone, differences, run_all


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def reference():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield alone()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(results, reference, name):
    for result in results[name]:
        found = differences(result, reference)
        assert found["first loss"] <= 1e-6
        assert found["gradient"] <= 1e-6
        assert found["weights"] <= 1e-5
        assert found["average"] <= 1e-5


def test_every_parameter_takes_part(reference):
    """Or a part of the table would compare zeros."""
    assert all(bool(gradient.any()) for gradient in reference["gradient"].values())
    assert reference["loss"]["loss"][-1] != reference["loss"]["loss"][0]
