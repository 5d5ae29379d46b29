"""The drifting problems of one training step: this rank's share of what all ranks together draw.

Everything random is a function of the run's seed, the step and the problem, so that a problem is the same whichever
rank holds it (`drifting.training.draws`).
Shapes: c classes of this rank; B problems, c or, in twin problems, 2 c, the second half for the same classes again;
G_r generated samples of each on this rank, P positives, N unconditional samples, samples [C, H, W].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.data.image_data import to_float
from domains.imagenet.generator import DiTGenerator
from domains.imagenet.real_samples import RealSamples
from drifting import DriftTerms, FeatureDriftLoss, guidance_weight
from drifting.accumulation import backward_in_parts
from drifting.features import Samples, total_loss
from drifting.training.draws import stream
from drifting.training.errors import ConfigError
from drifting.training.flops import training_flops
from drifting.training.parallelize import unsynchronized, weigh_gradient
from drifting.training.telemetry import Telemetry
from drifting.training.world import World


@dataclass(frozen=True)
class StepProblems:
    """Some problems of one step, on the device; `weight`: of their mean in the mean over all ranks' problems."""

    labels: Tensor  # [B]
    alpha: Tensor  # [B]
    noise: Tensor  # [B, G_r, C, H, W]
    style: Tensor | None  # [B, G_r, codebooks]
    positives: Samples  # [B, P, C, H, W], or their features
    unconditional: Samples  # [B, N, C, H, W], or their features
    neg_weight: Tensor  # [B]
    twins: bool
    weight: float

    def arguments(self, model: Callable[..., Tensor]) -> dict[str, Any]:
        """Of the drifting loss: generated samples [B, G_r, C, H, W], and what they are held against."""
        count = self.noise.shape[1]
        condition = [self.labels.repeat_interleave(count), self.alpha.repeat_interleave(count)]
        style = [] if self.style is None else [self.style.flatten(0, 1)]
        samples = model(self.noise.flatten(0, 1), *condition, *style)
        gen = weigh_gradient(samples.unflatten(0, (len(self.labels), count)), self.weight)
        twin = gen.detach().roll(len(gen) // 2, dims=0) if self.twins else None
        return {
            "gen": gen,
            "pos": self.positives,
            "neg": self.unconditional,
            "neg_weight": self.neg_weight,
            "self_ref": twin,
        }

    def split(self, parts: int) -> "list[StepProblems]":
        """Cut into `parts` of some classes each; twins stay together."""
        pairs = 2 if self.twins else 1
        rows = torch.arange(len(self.labels), device=self.labels.device).view(pairs, -1)
        return [self._take(part.flatten()) for part in rows.tensor_split(parts, dim=1)]

    def encoded(self, encode: Callable[[Tensor], dict[str, Tensor]], dtype: torch.dtype) -> "StepProblems":
        """Features in place of the real samples, so that several passes encode them once."""

        def features(samples: Samples) -> Samples:
            if not isinstance(samples, Tensor):
                return samples
            return {key: feature.to(dtype) for key, feature in encode(samples).items()}

        return replace(self, positives=features(self.positives), unconditional=features(self.unconditional))

    def _take(self, rows: Tensor) -> "StepProblems":
        blocks = {f.name: block for f in fields(self) if isinstance(block := getattr(self, f.name), Tensor)}
        return replace(self, **{name: block[rows] for name, block in blocks.items()})


class ProblemDraws:
    """Draws this rank's problems of a step.

    Raises:
        ConfigError: fewer classes per step than shares or parts, samples that the ranks cannot share evenly.
    """

    def __init__(
        self, config: ImagenetConfig, real: RealSamples, generator: OneStepGenerator, num_classes: int, world: World
    ) -> None:
        drift, queue = config.drift, config.queue
        self.seed, self.world, self.real, self.generator = config.run.seed, world, real, generator
        self.num_classes, self.drift, self.guidance = num_classes, drift, config.guidance.build()
        self.own = world.own(drift.classes_per_step, "drift.classes_per_step")
        self.own_samples = world.own_samples(drift.num_generated, "drift.num_generated")
        self.own_queues = queue.owner == "rank"
        held = self.own.stop - self.own.start
        least = drift.classes_per_step // world.problem_shares
        if config.parallel.parts > least:
            raise ConfigError(
                f"parallel.parts must be at most {least}, the classes of a rank in a step, got {config.parallel.parts}"
            )
        if self.own_queues and queue.push_per_step < held:
            raise ConfigError(
                f"queue.push_per_step must be at least {held} with queue.owner=rank, one image for each class of a "
                f"rank's step, got {queue.push_per_step}"
            )

    @property
    def images_per_step(self) -> int:
        """Generated images of a step, of all ranks together."""
        return self.drift.classes_per_step * (2 if self.drift.twins else 1) * self.drift.num_generated

    def flops(self, encoder: nn.Module) -> int:
        """FLOPs of a step's networks on this rank, forward and backward; nothing is computed."""
        labels = torch.zeros(1, dtype=torch.long)
        noise, style = self._noise(0, [0], torch.Size(self.real.data.sample_shape))
        inputs = [noise[0, :1], labels, torch.ones(1), *([] if style is None else [style[0, :1]])]
        problems = (self.own.stop - self.own.start) * (2 if self.drift.twins else 1)
        generated = problems * (self.own_samples.stop - self.own_samples.start)
        references = problems * (self.drift.num_positive + self.drift.num_unconditional)
        return training_flops(self.generator, inputs, encoder, generated=generated, references=references)

    def draw(self, step: int) -> StepProblems:
        """The problems of update `step`, with real samples as the queues hold them now."""
        labels, alpha = self._classes(step)
        problems = list(range(self.own.start, self.own.stop))
        if self.drift.twins:
            labels, alpha = labels.repeat(2), alpha.repeat(2)
            problems += [self.drift.classes_per_step + problem for problem in problems]
        device, drift = self.world.device, self.drift
        streams = [stream(self.seed, "real", step, problem) for problem in problems]
        positives, unconditional = (to_float(block.to(device)) for block in self.real.draw(labels, streams))
        noise, style = self._noise(step, problems, positives.shape[2:])
        alpha = alpha.to(device)
        return StepProblems(
            labels=labels.to(device),
            alpha=alpha,
            noise=noise,
            style=style,
            positives=positives,
            unconditional=unconditional,
            neg_weight=guidance_weight(alpha, drift.num_generated, drift.num_unconditional),
            twins=drift.twins,
            weight=self.world.weight(drift.classes_per_step),
        )

    def _classes(self, step: int) -> tuple[Tensor, Tensor]:
        """Labels [c] and guidance scales [c] of this rank."""
        if self.own_queues:  # each rank its own, of classes that its queues have just seen
            share, count = self.world.problem_share, self.own.stop - self.own.start
            newest = self.real.newest_labels
            chosen = torch.randperm(len(newest), generator=stream(self.seed, "labels", step, share))[:count]
            return newest[chosen], self.guidance.sample(count, stream(self.seed, "alpha", step, share))
        labels = torch.randperm(self.num_classes, generator=stream(self.seed, "labels", step))
        alpha = self.guidance.sample(self.drift.classes_per_step, stream(self.seed, "alpha", step))
        return labels[: self.drift.classes_per_step][self.own], alpha[self.own]

    def _noise(self, step: int, problems: Sequence[int], shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """Noise [B, G_r, C, H, W] and style [B, G_r, codebooks]: of each problem's G, all drawn, this rank's."""
        device, total = self.world.device, self.drift.num_generated
        noise, style = [], []
        for problem in problems:
            source = stream(self.seed, "noise", step, problem, device)
            noise.append(torch.randn(total, *shape, generator=source, device=device)[self.own_samples])
            if isinstance(self.generator, DiTGenerator):
                drawn = self.generator.conditioning.draw_style(total, device, source)
                style += [] if drawn is None else [drawn[self.own_samples]]
        return torch.stack(noise), torch.stack(style) if style else None


def backward(
    model: nn.Module,
    drift_loss: FeatureDriftLoss,
    batch: StepProblems,
    telemetry: Telemetry,
    *,
    parts: int,
    with_terms: bool,
    keep_references: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, DriftTerms]]:
    """Add the gradient of the loss to the parameters; this rank's loss, [], and its terms.

    In several parts the terms, if asked for, are those of the first part on each rank, with statistics of their own,
    and the backward passes are timed as the loss. Features of real samples are kept between their passes as
    `keep_references`, or, where it is None, made anew in each.
    """
    generator = telemetry.wrap("generator", model)
    if parts == 1:
        with telemetry.region("loss"):
            arguments = batch.arguments(generator)
            # Diagnostics are work of their own: only where somebody reads them.
            terms = drift_loss.terms(**arguments) if with_terms else {}
            loss = total_loss(terms) if with_terms else drift_loss(**arguments)
        with telemetry.region("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), terms
    with telemetry.region("loss"):
        pieces = batch.split(parts)
        if keep_references is not None:
            pieces = [piece.encoded(drift_loss.encode, keep_references) for piece in pieces]
        terms = terms_alone(generator, drift_loss, pieces[0]) if with_terms else {}
        calls = [partial(piece.arguments, generator) for piece in pieces]
        return backward_in_parts(drift_loss, calls, unsynchronized=partial(unsynchronized, model)), terms


def terms_of_parts(
    model: Callable[..., Tensor], drift_loss: FeatureDriftLoss, batch: StepProblems, parts: int
) -> Iterator[dict[str, DriftTerms]]:
    """Terms of one part after another, without gradients, with statistics of their own."""
    for piece in batch.split(parts):
        yield terms_alone(model, drift_loss, piece)


@torch.no_grad()
def terms_alone(
    model: Callable[..., Tensor], drift_loss: FeatureDriftLoss, piece: StepProblems
) -> dict[str, DriftTerms]:
    """Terms of some problems, without gradients, with statistics of their own."""
    return drift_loss.terms(**piece.arguments(model))
