"""The benchmarks of a GPU run, and find a gradient that is right."""

import json

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from benchmarks import drift_loss_gpu


def test_the_loss_is_measured_captured_and_right(tmp_path):
    candidates = ["ours", "ours, CUDA graph", "transcription"]
    drift_loss_gpu.main(["--quick", "--root", str(tmp_path), "--candidates", *candidates])
    for result in json.loads((tmp_path / "drift_loss_gpu.json").read_text())["shapes"]:
        assert list(result["seconds"]) == candidates
        assert result["failed"] == {}
        assert all(error < 1e-4 for error in result["gradient_error"].values())
