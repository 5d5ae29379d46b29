"""Configuration of image training: the shared sections and this domain's own. Defaults are the paper's (Table 8)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from domains.imagenet.conv_generator import ConvConfig, ConvGenerator
from domains.imagenet.data.section import DataSection
from domains.imagenet.encoders.section import EncoderSection
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.mlp_generator import MlpConfig, MlpGenerator
from domains.imagenet.tokenizers.section import TokenizerSection
from drifting import (
    DriftLoss,
    GuidanceRange,
    MeanShift,
    Sinkhorn,
    row_affinity,
    two_sided_affinity,
    unnormalized_affinity,
)
from drifting.fields import Field, KernelGradient
from drifting.training.checkpoint_file import checkpoint_paths
from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    require,
)

OneStepGenerator = DiTGenerator | ConvGenerator | MlpGenerator
"""(noise [K, C, H, W], labels [K], alpha [K]) -> samples [K, C, H, W]."""

GENERATORS: dict[str, Callable[[Any], OneStepGenerator]] = {
    "dit": DiTGenerator,
    "conv": ConvGenerator,
    "mlp": MlpGenerator,
}
AFFINITIES = {"two_sided": two_sided_affinity, "row": row_affinity, "unnormalized": unnormalized_affinity}
KEPT_REFERENCES = {"none": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DOES_NOT_TRAIN = ("eval", *(f"data.{key}" for key in ("threads", "validation", "test", "images")))
# Where things lie. What lies there a checkpoint knows: it refuses other images and other weights.
MAY_MOVE = (
    *("data.path", "data.leave_out", "encoder.run", "encoder.path"),
    *(f"encoder.{kind}.path" for kind in ("convnext", "moco", "simclr")),
)


@dataclass
class GeneratorSection:
    """Which generator, and its shape; the sections of the other kinds have no effect.

    `init`: the weights that training starts from, instead of drawn ones: a run directory (its average), or a folder or
    Hub repository of `DiTGenerator.save_pretrained`.
    """

    kind: str = "dit"
    init: str = ""
    dit: GeneratorConfig = field(default_factory=GeneratorConfig)
    conv: ConvConfig = field(default_factory=ConvConfig)
    mlp: MlpConfig = field(default_factory=MlpConfig)

    def __post_init__(self) -> None:
        require(self.kind in GENERATORS, "generator.kind", ", ".join(GENERATORS), self.kind)

    @property
    def shape(self) -> GeneratorConfig | ConvConfig | MlpConfig:
        """The section of the kind that is built."""
        shape: GeneratorConfig | ConvConfig | MlpConfig = getattr(self, self.kind)
        return shape

    def build(self) -> OneStepGenerator:
        """A new generator with fresh weights."""
        return GENERATORS[self.kind](self.shape)


@dataclass
class DriftSection:
    """The loss and the size of its problems: G = num_generated, P = num_positive, N = num_unconditional.

    "mean_shift" is the paper's field, one problem per class: B = classes_per_step; "kernel_gradient" follows the ratio
    of kernel densities. "sinkhorn" needs a second generated batch: two problems per class, B = 2 classes_per_step, each
    the other's second batch. `budget`: bytes per problem that features processed together may hold; null takes all at
    once, which several ranks do faster. `keep_references`: with parallel.parts, whose passes see the real images three
    times, "float32" or "bfloat16" keeps their features, of all labels of a rank (6 M values an image with the paper's
    largest encoder), and spares two of the encoder's passes over them; "none" makes them anew. `affinity`,
    `attraction` and `repulsion` other than these are the paper's ablations (Tables 11 and 1).
    """

    temperatures: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.2])
    field: str = "mean_shift"
    floor: float = 1e-3  # of mean_shift, as the next three
    affinity: str = "two_sided"
    attraction: float = 1.0
    repulsion: float = 1.0
    classes_per_step: int = 64
    num_generated: int = 64
    num_positive: int = 64
    num_unconditional: int = 16
    budget: int | None = 64 * 2**20
    keep_references: str = "none"

    def __post_init__(self) -> None:
        known = self.keep_references in KEPT_REFERENCES
        require(known, "drift.keep_references", " or ".join(KEPT_REFERENCES), self.keep_references)
        require(self.budget is None or self.budget >= 1, "drift.budget", "at least 1 byte, or null", self.budget)
        require(self.field in FIELDS, "drift.field", " or ".join(FIELDS), self.field)
        require(self.affinity in AFFINITIES, "drift.affinity", " or ".join(AFFINITIES), self.affinity)
        changed = (self.affinity, self.attraction, self.repulsion) != ("two_sided", 1.0, 1.0)
        expected = "mean_shift, for another drift.affinity, drift.attraction or drift.repulsion"
        require(not changed or self.field == "mean_shift", "drift.field", expected, self.field)
        require(self.classes_per_step >= 1, "drift.classes_per_step", "at least 1", self.classes_per_step)
        expected = "at least 2 (a sample repels the others)"
        require(self.num_generated >= 2, "drift.num_generated", expected, self.num_generated)
        require(self.num_positive >= 1, "drift.num_positive", "at least 1", self.num_positive)
        require(self.num_unconditional >= 1, "drift.num_unconditional", "at least 1", self.num_unconditional)
        self.build()

    def build(self) -> DriftLoss:
        """The drifting loss."""
        return DriftLoss(self.temperatures, FIELDS[self.field](self))

    @property
    def kept_references(self) -> torch.dtype | None:
        """Of features of real images between the passes of parts; None keeps none."""
        return KEPT_REFERENCES[self.keep_references]

    @property
    def twins(self) -> bool:
        """Whether every class has two problems."""
        return self.field == "sinkhorn"


def _mean_shift(drift: DriftSection) -> MeanShift:
    sides = {"attraction": drift.attraction, "repulsion": drift.repulsion}
    return MeanShift(floor=drift.floor, affinity=AFFINITIES[drift.affinity], **sides)


FIELDS: dict[str, Callable[[DriftSection], Field]] = {
    "mean_shift": _mean_shift,
    "kernel_gradient": lambda drift: KernelGradient(),
    "sinkhorn": lambda drift: Sinkhorn(),
}


@dataclass
class GuidanceSection:
    """Guidance scales seen in training: p(alpha) ~ alpha^-power on [low, high], and 1 with `off_probability`."""

    low: float = 1.0
    high: float = 4.0
    power: float = 3.0
    off_probability: float = 0.0

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> GuidanceRange:
        """The distribution."""
        return GuidanceRange(self.low, self.high, self.power, self.off_probability)


@dataclass
class QueueSection:
    """Real samples kept for each class and for all classes together, and pushed per step (paper A.8).

    `owner` "run": every rank keeps the same queues and a run is the same on any number of ranks; each rank reads all
    data. "rank", the authors' dynamics with a rank for their host: every rank fills queues of its own with
    `push_per_step` images of its own per step, and its classes are those of images that it has just pushed.
    """

    per_class: int = 128
    unconditional: int = 1000
    push_per_step: int = 64
    owner: str = "run"
    holds: str = "samples"  # or "indices": samples are read again for every draw

    def __post_init__(self) -> None:
        require(self.holds in ("samples", "indices"), "queue.holds", "samples or indices", self.holds)
        require(self.owner in ("run", "rank"), "queue.owner", "run or rank", self.owner)
        for name in ("per_class", "unconditional", "push_per_step"):
            require(getattr(self, name) >= 1, f"queue.{name}", "at least 1", getattr(self, name))


def free_keys(run: RunConfig) -> tuple[str, ...]:
    """Keys that may differ when a run is continued; paths once it has a checkpoint, which knows what lay there."""
    begun = bool(checkpoint_paths(Path(run.root) / run.name))
    return (*DOES_NOT_TRAIN, *MAY_MOVE) if begun else DOES_NOT_TRAIN


@dataclass
class ImagenetConfig:
    """Everything that `python -m domains.imagenet.train` needs."""

    run: RunConfig
    data: DataSection = field(default_factory=DataSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    generator: GeneratorSection = field(default_factory=GeneratorSection)
    encoder: EncoderSection = field(default_factory=lambda: EncoderSection(kind="pixels"))  # needs no weights
    drift: DriftSection = field(default_factory=DriftSection)
    guidance: GuidanceSection = field(default_factory=GuidanceSection)
    queue: QueueSection = field(default_factory=QueueSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalSection = field(default_factory=EvalSection)

    def __post_init__(self) -> None:
        expected = f"at least drift.num_positive = {self.drift.num_positive}"
        require(self.queue.per_class >= self.drift.num_positive, "queue.per_class", expected, self.queue.per_class)
        expected = f"at least drift.num_unconditional = {self.drift.num_unconditional}"
        enough = self.queue.unconditional >= self.drift.num_unconditional
        require(enough, "queue.unconditional", expected, self.queue.unconditional)
        self.eval.averages(self.ema.decays)
