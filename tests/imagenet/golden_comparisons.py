"""Our numbers beside those of the authors' code, as `Comparison`s: tests assert them, benchmarks.parity prints them.

Each function takes the arrays of one golden file. A tolerance is of the largest difference of a tensor over its largest
magnitude. What the whole training step returns is in golden_train_step.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from golden_networks import Arrays, channels_first, generator_from, mae_from, style_of
from torch import Tensor

from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.generator import DiTGenerator
from drifting import GuidanceRange, SampleQueue

PARAMETERS = ("params/", "q8/params/", "q8meta/params/")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of ours and the authors'. tolerance None: their value is rounding, see golden_train_step.py."""

    group: str
    name: str
    ours: Tensor
    theirs: Tensor
    tolerance: float | None

    @property
    def error(self) -> float:
        """Largest difference over the authors' largest magnitude; the difference itself where they have only zeros."""
        ours, theirs = self.ours.detach().double(), self.theirs.double()
        if ours.shape != theirs.shape:
            raise ValueError(f"{self.group}, {self.name}: ours is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
        largest = theirs.abs().max().item()
        return (ours - theirs).abs().max().item() / (largest or 1.0)

    @property
    def holds(self) -> bool:
        return self.tolerance is None or self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.group}, {self.name}: error {self.error:.2e}, tolerance {self.tolerance}"


def assert_all_hold(comparisons: list[Comparison]) -> None:
    failed = [str(comparison) for comparison in comparisons if not comparison.holds]
    assert not failed, "\n".join(failed)


def generator_comparisons(arrays: Arrays, case: str) -> Iterator[Comparison]:
    """Condition vector and samples; those of the authors' own draws where the file has them; norms of the gradients."""
    net = generator_from(arrays)
    labels, alpha = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["cfg"])
    for prefix in [prefix for prefix in ("call_", "") if f"{prefix}samples" in arrays]:
        style = style_of(arrays, f"{prefix}noise_labels", net)
        samples = net(channels_first(arrays[f"{prefix}x"]), labels, alpha, style)
        theirs = channels_first(arrays[f"{prefix}samples"])
        yield Comparison(f"generator {case}: samples", f"{prefix}samples", samples, theirs, 2e-5)
    cond = net.conditioning(labels, alpha, style)
    yield Comparison(f"generator {case}: condition", "cond", cond, torch.from_numpy(arrays["cond"]), 2e-5)
    (samples * channels_first(arrays["cotangent"])).sum().backward()
    norms = {name: np.full(shape, arrays[f"gradnorm/{name}"]) for name, shape in parameter_shapes(arrays).items()}
    for name, gradient, norm in recorded_beside(net, carrying(arrays, norms)):
        yield Comparison(f"generator {case}: gradient norms", name, gradient.norm(), norm.flatten()[0], 1e-4)


def parameter_shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Shape of every stored parameter by its flax name."""
    return {
        name.removeprefix("q8/").removeprefix("params/"): value.shape
        for name, value in arrays.items()
        if name.startswith(("params/", "q8/params/"))
    }


def carrying(arrays: Arrays, values: Mapping[str, np.ndarray]) -> DiTGenerator:
    """A generator whose parameters are other values by flax name: gradients, say, which so get our names and layout."""
    replaced = {f"params/{name}": np.asarray(value, np.float32) for name, value in values.items()}
    return generator_from({"config": arrays["config"]} | replaced)


def recorded_beside(net: DiTGenerator, recorded: DiTGenerator) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, our gradient, what `recorded` carries) of every parameter; style codebooks one by one, as theirs are."""
    for (name, ours), theirs in zip(net.named_parameters(), recorded.parameters(), strict=True):
        size = net.cfg.style_codes if name == "conditioning.style.weight" else len(ours)
        blocks = zip(ours.grad.split(size), theirs.detach().split(size), strict=True)
        for index, (gradient, value) in enumerate(blocks):
            yield (f"{name}[{index}]" if size < len(ours) else name), gradient, value


def autoencoder_comparisons(arrays: Arrays, case: str) -> Iterator[Comparison]:
    """Both losses, every activation, and the gradient of their squares in the images."""
    mae = mae_from(arrays)
    images, labels = channels_first(arrays["x"]), torch.from_numpy(arrays["labels"]).long()
    # 0.1 is the weight with which the stored loss was computed
    result = mae(images, labels, classification_weight=0.1, mask=channels_first(arrays["mask"]).bool())
    for name, ours in {
        "loss": result.loss,
        "metric/recon_loss": result.reconstruction,
        "metric/cls_loss": result.classification,
        "metric/accuracy": result.correct.float(),
    }.items():
        yield Comparison(f"auto-encoder {case}: losses", name, ours, torch.from_numpy(arrays[name]), 2e-5)

    images.requires_grad_()
    features = MaeFeatures(mae, sample_itself=False)(images)
    if features.keys() != {str(key) for key in arrays["keys"]}:
        raise ValueError(f"auto-encoder {case}: ours has the features {sorted(features)}, theirs {arrays['keys']}")
    for key, value in features.items():
        theirs = torch.from_numpy(arrays[f"act/{key}"])
        yield Comparison(f"auto-encoder {case}: activations", key, value, theirs, 2e-5)
    sum(value.square().sum() for value in features.values()).backward()
    theirs = channels_first(arrays["grad_x_sum_sq"])
    yield Comparison(f"auto-encoder {case}: gradient in the images", "grad_x_sum_sq", images.grad, theirs, 2e-5)


def guidance_comparisons(arrays: Arrays) -> Iterator[Comparison]:
    """Guidance scales on [1, 4] from the recorded uniform numbers: `frac` gives the scale, `frac2` switches it off."""
    uniform = torch.from_numpy(np.stack([arrays["cfg/frac"], arrays["cfg/frac2"]]))
    for name in [name for name in arrays if name.startswith("cfg/pw")]:
        power, off = (float(number) for number in name.removeprefix("cfg/pw").split("_nocfg"))
        law = GuidanceRange(1.0, 4.0, power, off)
        with patch("torch.rand", return_value=uniform):
            alpha = law.sample(uniform.shape[1])
        yield Comparison("guidance scales", name, alpha, torch.from_numpy(arrays[name]), 1e-6)


def filled_queue(arrays: Arrays, per_push: int) -> SampleQueue:
    """The recorded samples, pushed so many at a time."""
    classes, capacity, *shape = arrays["bank"].shape
    queue = SampleQueue(classes, capacity, shape, generator=torch.Generator().manual_seed(0))
    samples = torch.from_numpy(arrays["samples_in"]).float().view(-1, *shape)
    labels = torch.from_numpy(arrays["labels_in"])
    for some, theirs in zip(samples.split(per_push), labels.split(per_push), strict=True):
        queue.push(some, theirs)
    return queue


def queue_comparisons(arrays: Arrays) -> Iterator[Comparison]:
    """Contents slot by slot, the slot of the next sample, and the count, after one push or many."""
    for per_push in (1, 5, len(arrays["samples_in"])):
        queue = filled_queue(arrays, per_push)
        for name, ours in {"bank": queue.samples, "ptr": queue.cursor, "count": queue.count}.items():
            name_of_push = f"{name}, {per_push} a push"
            yield Comparison("queue: contents", name_of_push, ours, torch.from_numpy(arrays[name]), 0.0)
