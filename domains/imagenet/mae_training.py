"""The settings of a pre-training run, and what such a run leaves: a trained masked auto-encoder."""

from dataclasses import dataclass, field
from pathlib import Path

from domains.imagenet.data.section import DataSection
from domains.imagenet.mae import MaeConfig, MaskedAutoencoder
from domains.imagenet.missing import Missing
from drifting.training.checkpoint import load_average
from drifting.training.checkpoint_file import checkpoint_paths, step_of
from drifting.training.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    require,
)
from drifting.training.errors import TrainingError
from drifting.training.run_dir import load_config

COMMAND = "python -m domains.imagenet.pretrain_mae"
EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "mae_experiment"


@dataclass
class MaeEvalSection:
    """Held-out figures every `every` steps and at the end; 0: at the end alone.

    `images`: held-out images at most. `probe_images`: training images at most, to which a linear classifier of the
    frozen features is fitted; 0 leaves it out.
    """

    every: int = 0
    images: int = 10_000
    probe_images: int = 20_000
    batch: int = 250

    def __post_init__(self) -> None:
        require(self.every >= 0, "eval.every", "at least 1, or 0 for the end alone", self.every)
        require(self.images >= 1, "eval.images", "at least 1", self.images)
        require(self.probe_images >= 0, "eval.probe_images", "at least 1, or 0 for no classifier", self.probe_images)
        require(self.batch >= 1, "eval.batch", "at least 1", self.batch)


@dataclass
class MaeTrainingConfig:
    """Everything that `python -m domains.imagenet.pretrain_mae` needs.

    For the last `classification_steps` the loss is (1 - w) reconstruction + w cross-entropy; w rises linearly to
    `classification_weight` over the first third of them (paper A.3).

    `data`: pixels or latents, as the generator will be trained on. Held-out figures are of data.validation, which for
    latents is another store of latents here; without one there are none.
    """

    run: RunConfig
    data: DataSection = field(default_factory=DataSection)
    mae: MaeConfig = field(default_factory=MaeConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=4e-3, warmup_steps=4000))
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(decays=[0.9995]))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: MaeEvalSection = field(default_factory=MaeEvalSection)
    batch: int = 8192
    classification_steps: int = 0
    classification_weight: float = 0.1

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        within = 0 <= self.classification_steps <= self.run.steps
        require(within, "classification_steps", f"in 0..run.steps={self.run.steps}", self.classification_steps)
        headed = self.classification_steps == 0 or self.mae.num_classes > 0
        require(headed, "mae.num_classes", "the number of classes, as classification_steps > 0", self.mae.num_classes)
        require(0 <= self.classification_weight <= 1, "classification_weight", "in [0, 1]", self.classification_weight)

    def weight_at(self, step: int) -> float:
        """Classification weight w of update `step`."""
        done = step - (self.run.steps - self.classification_steps)
        rise = max(1, self.classification_steps // 3)
        return 0.0 if done < 0 else self.classification_weight * min(1.0, done / rise)


def load_mae(run_dir: Path, decay: float | None = None, setting: str = "encoder.run") -> MaskedAutoencoder:
    """The averaged auto-encoder of a finished pre-training run; `decay` as in `load_average`.

    Raises:
        TrainingError: no such run, an unfinished one, or a damaged checkpoint; `setting` names it.
    """
    if not run_dir.exists():
        raise TrainingError(f"{setting}={run_dir} does not exist. Pre-train it first: {COMMAND}")
    config = load_config(run_dir, MaeTrainingConfig)
    mae, step = load_average(run_dir, MaskedAutoencoder(config.mae), config.ema, decay)
    if step < config.run.steps:
        raise TrainingError(
            f"{setting}={run_dir} stopped at step {step} of {config.run.steps}. "
            "Finish it with the command that started it."
        )
    return mae


def pretraining_command(run_dir: Path) -> str:
    """The command that trains the auto-encoder of this run directory."""
    command = f"{COMMAND} run.root={run_dir.parent} run.name={run_dir.name}"
    experiment = run_dir.name.removeprefix("mae_")
    return f"{command} mae_experiment={experiment}" if (EXPERIMENTS / f"{experiment}.yaml").exists() else command


def missing_mae(run_dir: Path, setting: str = "encoder.run") -> list[Missing]:
    """The pre-training run, unless it is there and finished; no weights are read.

    Raises:
        RunDirError: the folder is none of a pre-training run.
    """
    command = pretraining_command(run_dir)
    if not run_dir.exists():
        return [Missing(setting, f"{run_dir} does not exist", command)]
    config = load_config(run_dir, MaeTrainingConfig)
    saved = checkpoint_paths(run_dir)
    step = step_of(saved[-1]) if saved else 0
    if step < config.run.steps:
        what = f"{run_dir} stopped at step {step} of {config.run.steps}"
        return [Missing(setting, what, f"{command} (with the other settings of {run_dir / 'resolved.yaml'})")]
    return []
