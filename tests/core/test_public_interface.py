"""The public names, their defaults and docstrings, and how little `import drifting` loads."""

import inspect
import subprocess
import sys

import pytest
import torch

import drifting
from drifting import DriftLoss, FeatureDriftLoss, GuidanceRange, MeanShift, SampleQueue, Sinkhorn, drift_field
from drifting.fields import WeightPlacement
from drifting.scales import Extent

NAMES = {
    "DriftLoss",
    "DriftTerms",
    "FeatureDriftLoss",
    "GuidanceRange",
    "MeanShift",
    "SampleQueue",
    "Sinkhorn",
    "drift_field",
    "gaussian",
    "guidance_weight",
    "laplacian",
    "row_affinity",
    "two_sided_affinity",
    "unnormalized_affinity",
}


def defaults(call) -> dict[str, object]:
    """Arguments that have a default."""
    parameters = inspect.signature(call).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_public_names():
    assert set(drifting.__all__) == NAMES
    assert all(hasattr(drifting, name) for name in NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_object_and_method_is_documented(name):
    thing = getattr(drifting, name)
    public = [thing]
    if inspect.isclass(thing):
        public += [member for key, member in vars(thing).items() if not key.startswith("_") and callable(member)]
    for member in public:
        # A dataclass without a docstring of its own shows its signature.
        assert member.__doc__ and not member.__doc__.startswith(f"{name}("), member


def test_defaults_are_the_authors_settings():
    assert defaults(DriftLoss) == {
        "temperatures": (0.02, 0.05, 0.2),
        "field": MeanShift(),
        "normalize_features": True,
        "normalize_drift": True,
        "process_group": None,
        "feature_extent": Extent.BATCH,
        "drift_extent": Extent.BATCH,
        "gain": 1.0,
        "refuse_nonfinite": False,
        "shard_generated": None,
    }
    assert defaults(MeanShift) == {
        "kernel": drifting.laplacian,
        "affinity": drifting.two_sided_affinity,
        "floor": 1e-3,
        "mask_self": True,
        "attraction": 1.0,
        "repulsion": 1.0,
        "separate_blocks": False,
        "weight_placement": WeightPlacement.AFFINITY,
        "bias_correction": False,
    }
    assert defaults(GuidanceRange) == {"low": 1.0, "high": 4.0, "power": 3.0, "off_probability": 0.0}
    assert defaults(drift_field)["temperature"] == 0.05
    assert defaults(drift_field)["field"] == MeanShift()


def test_signatures():
    samples = ["gen", "pos", "neg"]
    weights = ["gen_weight", "pos_weight", "neg_weight", "self_ref"]
    for call in (DriftLoss.forward, DriftLoss.terms):
        parameters = inspect.signature(call).parameters
        assert list(parameters) == ["self", *samples, *weights]
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in weights)
        assert all(default is None for default in defaults(call).values())
    assert set(inspect.signature(drift_field).parameters) >= {*samples, *weights, "temperature", "field", "mask_self"}
    assert list(inspect.signature(FeatureDriftLoss).parameters) == ["encoder", "loss", "budget"]
    assert list(inspect.signature(GuidanceRange.sample).parameters) == ["self", "n", "generator", "device"]
    assert list(inspect.signature(drifting.guidance_weight).parameters) == ["alpha", "num_gen", "num_uncond"]
    queue = inspect.signature(SampleQueue).parameters
    positional = [name for name, p in queue.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == ["num_classes", "capacity", "sample_shape", "dtype", "generator"]
    assert queue["dtype"].default is torch.float32


def test_fields_are_frozen_values():
    """Safe as default arguments."""
    for field, name in ((MeanShift(), "floor"), (Sinkhorn(), "iterations")):
        with pytest.raises(AttributeError):
            setattr(field, name, 1)


def test_importing_loads_torch_and_einops_and_nothing_else_of_weight():
    """Whatever torch itself loads (tqdm and numpy, where installed) does not count."""
    script = (
        "import sys; import torch, einops; before = {m.partition('.')[0] for m in sys.modules}; import drifting; "
        "print(*({m.partition('.')[0] for m in sys.modules} - before)); "
        "print(*[m for m in sys.modules if m.startswith('drifting.training')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    added, training = done.stdout.splitlines()
    assert set(added.split()) - set(sys.stdlib_module_names) == {"drifting"}
    assert training == ""


def test_printing_the_loss_shows_its_settings():
    text = repr(DriftLoss((0.1,), MeanShift(floor=0.0), normalize_drift=False))
    assert "temperatures=(0.1,)" in text and "floor=0.0" in text and "normalize_drift=False" in text
