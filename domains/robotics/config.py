"""Configuration of robot policies: the shared sections and this domain's own, the settings of Diffusion Policy.

What a task is stands in configs/task/; how a policy is trained on it in configs/experiment/.
"""

from dataclasses import dataclass, field
from pathlib import Path

from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.task import TaskConfig
from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    require,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NETWORKS = ("unet", "transformer", "mlp")


@dataclass
class UnetConfig:
    """The convolutional network of Diffusion Policy: one width per level, each level half as long as the one above."""

    down_dims: list[int] = field(default_factory=lambda: [256, 512, 1024])
    kernel_size: int = 5
    groups: int = 8
    activation: str = "mish"  # "silu" is nearly the same function, and ten times as fast on a CPU
    step_width: int = 256  # of the embedded diffusion step; the drifting policy has none

    def __post_init__(self) -> None:
        valid = len(self.down_dims) > 0 and all(width >= 1 for width in self.down_dims)
        require(valid, "policy.unet.down_dims", "one or more widths", self.down_dims)
        require(self.groups >= 1, "policy.unet.groups", "at least 1", self.groups)
        even = all(width % self.groups == 0 for width in self.down_dims)
        require(even, "policy.unet.down_dims", f"multiples of policy.unet.groups = {self.groups}", self.down_dims)
        known = self.activation in ("mish", "silu")
        require(known, "policy.unet.activation", "mish or silu", self.activation)
        odd = self.kernel_size >= 1 and self.kernel_size % 2 == 1
        require(odd, "policy.unet.kernel_size", "odd", self.kernel_size)
        pairs = self.step_width >= 4 and self.step_width % 2 == 0
        require(pairs, "policy.unet.step_width", "even and at least 4", self.step_width)


@dataclass
class TransformerConfig:
    """A token per timestep of the chunk, attending to all of them and to the observation."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            require(getattr(self, name) >= 1, f"policy.transformer.{name}", "at least 1", getattr(self, name))
        even = self.width % (2 * self.heads) == 0
        require(even, "policy.transformer.width", f"a multiple of 2 heads = {2 * self.heads}", self.width)
        require(0 <= self.dropout < 1, "policy.transformer.dropout", "in [0, 1)", self.dropout)


@dataclass
class MlpConfig:
    """`depth` residual blocks of width `hidden` on the flattened chunk: what a CPU trains in minutes."""

    hidden: int = 512
    depth: int = 3

    def __post_init__(self) -> None:
        for name in ("hidden", "depth"):
            require(getattr(self, name) >= 1, f"policy.mlp.{name}", "at least 1", getattr(self, name))


@dataclass
class ImageConfig:
    """The visual encoder of each camera: ResNet-18 to `keypoints` spatial-softmax points, on crops of `crop` pixels.

    Crops are random in training and central otherwise; `crop` 0 takes the whole image.
    """

    crop: int = 76
    keypoints: int = 32
    features: int = 64

    def __post_init__(self) -> None:
        require(self.crop >= 0, "policy.image.crop", "at least 1, or 0 for none", self.crop)
        for name in ("keypoints", "features"):
            require(getattr(self, name) >= 1, f"policy.image.{name}", "at least 1", getattr(self, name))


@dataclass
class DiffusionConfig:
    """The baseline: DDPM with squared-cosine noise levels, sampled by `sampler` in `inference_steps`.

    `prediction`: what the network returns, the noise ("epsilon", as published) or the clean actions ("sample", much
    better in small networks). `draws`: noise levels per observation and step, each a sample of the network's batch, so
    that the baseline and a drifting policy with as many generated samples cost the same.
    """

    train_steps: int = 100
    prediction: str = "epsilon"
    sampler: str = "ddpm"
    inference_steps: int = 100
    draws: int = 1

    def __post_init__(self) -> None:
        require(self.train_steps >= 2, "policy.diffusion.train_steps", "at least 2", self.train_steps)
        known = self.prediction in ("epsilon", "sample")
        require(known, "policy.diffusion.prediction", "epsilon or sample", self.prediction)
        require(self.sampler in ("ddpm", "ddim"), "policy.diffusion.sampler", "ddpm or ddim", self.sampler)
        steps = 1 <= self.inference_steps <= self.train_steps
        expected = f"in [1, policy.diffusion.train_steps = {self.train_steps}]"
        require(steps, "policy.diffusion.inference_steps", expected, self.inference_steps)
        require(self.draws >= 1, "policy.diffusion.draws", "at least 1", self.draws)


@dataclass
class PolicyConfig:
    """What a policy is, training apart: its time layout, its network, and how it turns noise into actions.

    A window has `horizon` action steps; its first `observation_steps` are those of the observations, and the policy
    executes `action_steps` from the last of them on. `noise_dim`: numbers that a drifting policy draws per chunk,
    lifted to the chunk's shape by a linear map; 0 draws noise of the chunk's shape. `octaves`: sines of each
    low-dimensional number that the network sees beside it, see `observations`; where a task wants precision.
    `geometry`: it also sees what follows from the poses that the task names, see `geometry`.
    `relative`: positions of absolute actions are from where the hand is, see `action_space`.
    """

    kind: str = "drifting"
    horizon: int = 16
    observation_steps: int = 2
    action_steps: int = 8
    net: str = "unet"
    noise_dim: int = 0
    octaves: int = 0
    geometry: bool = False
    relative: bool = False
    unet: UnetConfig = field(default_factory=UnetConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    mlp: MlpConfig = field(default_factory=MlpConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        require(self.kind in ("drifting", "diffusion"), "policy.kind", "drifting or diffusion", self.kind)
        require(self.net in NETWORKS, "policy.net", ", ".join(NETWORKS), self.net)
        for name in ("horizon", "observation_steps", "action_steps"):
            require(getattr(self, name) >= 1, f"policy.{name}", "at least 1", getattr(self, name))
        longest = self.horizon - self.observation_steps + 1
        expected = f"at most horizon - observation_steps + 1 = {longest}"
        require(self.action_steps <= longest, "policy.action_steps", expected, self.action_steps)
        require(self.noise_dim >= 0, "policy.noise_dim", "at least 1, or 0 for the chunk's shape", self.noise_dim)
        # Beyond 2^16 float32 has no digits left of the angle.
        require(0 <= self.octaves <= 16, "policy.octaves", "in 0..16", self.octaves)
        halved = 2 ** (len(self.unet.down_dims) - 1)
        fits = self.net != "unet" or self.horizon % halved == 0
        require(fits, "policy.horizon", f"a multiple of {halved} for {len(self.unet.down_dims)} levels", self.horizon)


@dataclass
class DriftConfig:
    """The drifting loss on action chunks, see `domains.robotics.objective`.

    `num_generated` chunks of each observation; `rows`: what drifts as one vector, the whole "chunk" or each "timestep",
    whose samples may change sides within a chunk; `neighbours`: chunks of the nearest observations in other
    demonstrations, as further positives.

    The paper does not give the temperatures of its policies. Those of its images, .02, .05, .2, are too narrow for one
    positive per observation: after 6000 steps on Square their held-out energy score is .129, of these .103, and they
    succeed in 0 of 16 rollouts, these in 10 (one seed). On the toy of tests/robotics/test_multimodal_toy.py 29 % of
    their samples stray from both modes, of these 14 %. `floor` 0 loses the smaller of two modes for 7 % of the toy's
    observations, 1e-6 for none.
    """

    temperatures: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])
    floor: float = 1e-6
    rows: str = "chunk"
    num_generated: int = 8
    neighbours: int = 0

    def __post_init__(self) -> None:
        valid = len(self.temperatures) > 0 and all(0 < tau < float("inf") for tau in self.temperatures)
        require(valid, "drift.temperatures", "one or more positive numbers", self.temperatures)
        require(0 <= self.floor < float("inf"), "drift.floor", "at least 0 and finite", self.floor)
        require(self.rows in ("chunk", "timestep"), "drift.rows", "chunk or timestep", self.rows)
        expected = "at least 2 (a sample repels the others)"
        require(self.num_generated >= 2, "drift.num_generated", expected, self.num_generated)
        require(self.neighbours >= 0, "drift.neighbours", "at least 0", self.neighbours)


@dataclass
class BatchConfig:
    """How many observations a step sees, over all ranks."""

    size: int = 256

    def __post_init__(self) -> None:
        require(self.size >= 1, "batch.size", "at least 1", self.size)


@dataclass
class HeldOutConfig:
    """Figures on windows of held-out demonstrations: every `every` steps, `windows` of them, `samples` chunks each."""

    every: int = 500
    windows: int = 400
    samples: int = 16

    def __post_init__(self) -> None:
        require(self.every >= 1, "held_out.every", "at least 1", self.every)
        require(self.windows >= 1, "held_out.windows", "at least 1", self.windows)
        require(self.samples >= 2, "held_out.samples", "at least 2", self.samples)


@dataclass
class EvalConfig:
    """Rollouts after the training: `episodes` fixed seeds from 100000 on (0: none), the last `checkpoints` averaged."""

    episodes: int = 50
    checkpoints: int = 10
    workers: int = 1
    videos: int = 0

    def __post_init__(self) -> None:
        for name in ("episodes", "videos"):
            require(getattr(self, name) >= 0, f"eval.{name}", "at least 0", getattr(self, name))
        for name in ("checkpoints", "workers"):
            require(getattr(self, name) >= 1, f"eval.{name}", "at least 1", getattr(self, name))


def robot_optim() -> OptimConfig:
    """As Diffusion Policy: AdamW 1e-4, betas .95 and .999, 500 steps of warm-up, cosine to 0."""
    return OptimConfig(
        lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, warmup_steps=500, schedule="cosine", clip_norm=1.0
    )


@dataclass
class RoboticsConfig:
    """Root of `configs/robotics.yaml`."""

    run: RunConfig
    task: TaskConfig
    demos: DemosConfig = field(default_factory=DemosConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=robot_optim)
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(decays=[0.9999], warmup=True))
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(keep=10))
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
