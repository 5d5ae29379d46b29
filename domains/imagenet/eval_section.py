"""How samples are measured: the `eval` section of training and of `python -m domains.imagenet.evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from domains.imagenet.metrics.inception_score import PROTOCOLS
from drifting.training.config import require
from drifting.training.errors import ConfigError

NETWORKS = ("judge", "inception")
RESIZES = ("tf1", "half_pixel")
ROUNDINGS = ("nearest", "truncate")


@dataclass
class EvalSection:
    """The report at the end, the figures on the way, and the space in which they are measured.

    alphas: guidance scales. samples_per_class: of the report at each of them; samples: their number in all, which
    overrides it; null leaves it. split: real images to compare with, validation while settings are being chosen.
    batch: images in one batch. ema: which averages the report measures, each at all of alphas: `first` of the run's
    ema.decays, `all`, or a list of decays; the paper's FID is the best over both.

    network: `judge` measures with `judges` classifiers that are trained on the training images, of seeds 1001, 1002,
    ..., kept in `judge_cache` (empty: .judges beside the run directory); `inception` with the published network in
    addition, read from the file `inception`, pictures resized as `resize` says. `reference`: npz file of statistics;
    empty: the images of `split`. reference_images: npz file whose arr_0 serves precision, recall and KID where the
    reference has no images. inception_score: `adm`, parts of 5000 in order, or `authors`, 10 parts after a permutation.
    rounding: of samples to 8 bits, `truncate` as the authors and ADM do. reference, resize, inception_score and
    rounding of the paper's numbers: its file, half_pixel, authors, truncate.

    neighbours: samples that are shown beside their nearest training images; 0 for none, as that reads all of these.
    every: steps between evaluations on the way, of the first average at each of alphas; null for none.
    quick_samples: of each of them.
    """

    alphas: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0])
    samples_per_class: int = 5000  # 50k in all for ten classes, as for an FID
    samples: int | None = None
    ema: Any = "first"
    judges: int = 3
    split: str = "test"
    batch: int = 1000
    network: str = "judge"
    judge_cache: str = ""
    inception: str = ""
    resize: str = "tf1"
    reference: str = ""
    reference_images: str = ""
    inception_score: str = "adm"
    rounding: str = "nearest"
    neighbours: int = 10
    every: int | None = None
    quick_samples: int = 2000

    def __post_init__(self) -> None:
        valid = len(self.alphas) > 0 and all(1 <= alpha < float("inf") for alpha in self.alphas)
        require(valid, "eval.alphas", "one or more guidance scales >= 1", self.alphas)
        listed = isinstance(self.ema, list) and len(self.ema) > 0
        require(listed or self.ema in ("first", "all"), "eval.ema", "first, all, or a list of decays", self.ema)
        for name in ("samples_per_class", "judges", "batch"):
            require(getattr(self, name) >= 1, f"eval.{name}", "at least 1", getattr(self, name))
        for name in ("samples", "every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"eval.{name}", "at least 1, or null", value)
        require(self.neighbours >= 0, "eval.neighbours", "at least 0", self.neighbours)
        # The parts of the authors' Inception score; more than the neighbours of precision and recall.
        require(self.quick_samples >= 10, "eval.quick_samples", "at least 10", self.quick_samples)
        require(self.split in ("validation", "test"), "eval.split", "validation or test", self.split)
        require(self.network in NETWORKS, "eval.network", " or ".join(NETWORKS), self.network)
        require(self.resize in RESIZES, "eval.resize", " or ".join(RESIZES), self.resize)
        require(self.inception_score in PROTOCOLS, "eval.inception_score", " or ".join(PROTOCOLS), self.inception_score)
        require(self.rounding in ROUNDINGS, "eval.rounding", " or ".join(ROUNDINGS), self.rounding)

    def averages(self, decays: Sequence[float]) -> list[float]:
        """Those of a run's `ema.decays` that a report measures.

        Raises:
            ConfigError: one that the run does not keep.
        """
        if self.ema in ("first", "all"):
            return list(decays if self.ema == "all" else decays[:1])
        if unknown := [decay for decay in self.ema if decay not in decays]:
            raise ConfigError(f"eval.ema must be first, all, or of the run's ema.decays={list(decays)}, got {unknown}")
        return list(dict.fromkeys(self.ema))
