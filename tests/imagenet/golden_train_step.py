"""The whole training step on the authors' arrays: noise to samples to features to losses, and back to the parameters.

The authors' distances are float32 dot products, |x|^2 + |y|^2 - 2 x.y. Where samples are far from the origin and close
to one another, the recorded numbers are made of their rounding. `rounding` says how much of a feature's mean distance
that can be, from float64 features. It decides how exactly a feature's scale can agree, and for the features of which
only rounding is left, the constant means and deviations behind a group norm with a channel per group, that it cannot.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from golden_comparisons import PARAMETERS, Comparison, carrying, recorded_beside
from golden_networks import Arrays, generator_from, mae_from
from torch import Tensor

from domains.imagenet.encoders import MaeFeatures
from domains.imagenet.generator import DiTGenerator
from drifting import DriftLoss, DriftTerms, FeatureDriftLoss, guidance_weight
from drifting.features import total_loss

FLOAT32_ROUNDING = 2.0**-24
UNDETERMINED = 0.1  # of the mean distance
# What the authors left at its default, the files do not record.
UNRECORDED = {"gen": {"mlp_ratio": 4.0}, "mae": {"input_patch_size": 1}}


def part_of(arrays: Arrays, network: str) -> Arrays:
    """Configuration and parameters of "gen" or "mae", as the file of a single network holds them."""
    config = UNRECORDED[network] | json.loads(str(arrays[f"{network}_config"]))
    parameters = {
        prefix + name.removeprefix(f"{prefix}{network}/"): value
        for name, value in arrays.items()
        for prefix in PARAMETERS
        if name.startswith(f"{prefix}{network}/")
    }
    return {"config": json.dumps(config)} | parameters


@dataclass(frozen=True)
class TrainStep:
    """One step by our public interface. B labels, G generated, P positives, N unconditional samples of each."""

    arrays: Arrays
    generator: DiTGenerator
    loss: FeatureDriftLoss
    gen: Tensor  # [B, G, C, H, W]
    pos: Tensor  # [B, P, C, H, W]
    neg: Tensor  # [B, N, C, H, W]
    weight: Tensor  # [B, N]

    def terms(self) -> dict[str, DriftTerms]:
        return self.loss.terms(self.gen, self.pos, self.neg, neg_weight=self.weight)

    def theirs(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def gradients(self, total: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, gradient of `total`, the authors' gradient) of every parameter of the generator."""
        self.generator.zero_grad()
        total.backward(retain_graph=True)
        recorded = {name.removeprefix("grad/"): value for name, value in self.arrays.items() if name[:5] == "grad/"}
        return recorded_beside(self.generator, carrying(part_of(self.arrays, "gen"), recorded))

    @torch.no_grad()
    def rounding(self) -> dict[str, float]:
        """How far rounding can move a feature's mean distance, relatively, if every dot product errs by half a unit."""
        everything = torch.cat([self.gen, self.neg, self.pos], dim=1).double()
        encoder, count = self.loss.encoder.double(), self.gen.shape[1]
        ones = [torch.ones(block.shape[:2]) for block in (self.gen, self.pos)]
        weight = torch.cat([ones[0], self.weight, ones[1]], dim=1).double()
        found = {}
        for key, features in FeatureDriftLoss(encoder, self.loss.loss).encode(everything).items():
            distance = torch.cdist(features[:, :count], features).clamp(min=1e-4)
            square = features.square().sum(-1)
            error = FLOAT32_ROUNDING * (square[:, :count, None] + square[:, None, :])
            moved = (distance.square() + error).sqrt() - distance
            by_problem = weight.repeat_interleave(len(features) // len(weight), dim=0)[:, None]
            found[key] = ((moved * by_problem).sum() / (distance * by_problem).sum()).item()
        self.loss.encoder.to(self.gen.dtype)
        return found


def train_step(arrays: Arrays, dtype: torch.dtype = torch.float32) -> TrainStep:
    generator = generator_from(part_of(arrays, "gen")).to(dtype)
    encoder = MaeFeatures(mae_from(part_of(arrays, "mae"))).to(dtype)

    def latents(name: str) -> Tensor:
        """[..., H, W, C] -> [..., C, H, W]."""
        return torch.from_numpy(arrays[name]).movedim(-1, -3).contiguous().to(dtype)

    pos, neg, noise = latents("pos"), latents("neg"), latents("x")
    alpha = torch.from_numpy(arrays["cfg"]).to(dtype)
    labels, num_gen = torch.from_numpy(arrays["labels"]), len(noise) // len(alpha)
    style = torch.from_numpy(arrays["noise_labels"]).long()
    samples = generator(noise, labels.repeat_interleave(num_gen), alpha.repeat_interleave(num_gen), style)
    weight = guidance_weight(alpha, num_gen, neg.shape[1])[:, None].expand(-1, neg.shape[1])
    gen = samples.unflatten(0, (len(alpha), num_gen))
    return TrainStep(arrays, generator, FeatureDriftLoss(encoder, DriftLoss()), gen, pos, neg, weight)


def train_step_comparisons(arrays: Arrays) -> Iterator[Comparison]:
    """Guidance weight, losses and scales per feature, the total, and the gradient of every parameter."""
    step = train_step(arrays)
    yield Comparison("train step: guidance weight", "uncond_w", step.weight[:, 0], step.theirs("uncond_w"), 1e-6)
    terms, rounding = step.terms(), step.rounding()
    recorded = {name.removeprefix("loss/") for name in arrays if name.startswith("loss/")}
    if terms.keys() != recorded:
        raise ValueError(f"train step: ours has the features {sorted(terms)}, theirs {sorted(recorded)}")
    determined = {key: term for key, term in terms.items() if rounding[key] < UNDETERMINED}
    for key, term in terms.items():
        exact, loss, scale = rounding[key] < 1e-4, step.theirs(f"loss/{key}"), step.theirs(f"scale/{key}")
        kind = "" if exact else (", rounded" if key in determined else ", rounding alone")
        bound = rounding[key] if key in determined else None
        yield Comparison(f"train step: losses{kind}", key, term.loss.mean(), loss, 2e-5 if exact else bound)
        yield Comparison(f"train step: scales{kind}", key, term.scale, scale, bound)

    total, undetermined = step.theirs("loss"), terms.keys() - determined.keys()
    # float32 sums: theirs in another order than ours
    sum_of_theirs = sum(step.theirs(f"loss/{key}") for key in terms)
    yield Comparison("train step: total loss", "sum of the authors' losses", sum_of_theirs, total, 1e-6)
    theirs = total - sum(step.theirs(f"loss/{key}") for key in undetermined)
    yield Comparison("train step: total loss", "determined features", total_loss(determined), theirs, 2e-5)

    yield from gradient_comparisons(step, total_loss(terms), "train step: gradient", 2e-4)
    # A gradient goes with 1 / scale: the recorded scale of a feature takes out what rounding did to it.
    rescaled = {key: term.loss.mean() * term.scale / step.theirs(f"scale/{key}") for key, term in determined.items()}
    yield from gradient_comparisons(step, sum(rescaled.values()), "train step: gradient, their scales", 1e-4)


def gradient_comparisons(step: TrainStep, total: Tensor, group: str, tolerance: float) -> Iterator[Comparison]:
    """The norm of the whole gradient, and of each parameter's."""
    pairs = list(step.gradients(total))
    for name, ours, theirs in pairs:
        yield Comparison(f"{group} norms", name, ours.norm(), theirs.norm(), tolerance)
        yield Comparison(f"{group} values", name, ours, theirs, 3 * tolerance)
    whole = torch.stack([ours.norm() for _, ours, _ in pairs]).norm()
    yield Comparison(f"{group} norms", "whole", whole, step.theirs("grad_norm"), tolerance)
