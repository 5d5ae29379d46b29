"""One evaluation of a run: figures at every guidance scale beside those of real images, sheets and plots."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.imagenet.check_measures import check_images, decoded_shape, images_read
from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.data.image_data import ImageData, to_float
from domains.imagenet.data.section import image_key
from domains.imagenet.data.whole_images import check_decodable
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.measuring import (
    figures_of,
    inception_reference,
    judge_cache,
    judge_figures,
    load_inception_of,
    load_judges,
    protocol_of,
)
from domains.imagenet.metrics.feature_network import FeatureNetwork
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.guidance_sweep import row_name, save_sweep, sweep_table
from domains.imagenet.metrics.image_batches import in_batches, some_of
from domains.imagenet.metrics.neighbours import SHOWN, nearest_images, save_neighbours
from domains.imagenet.pictures import save_comparison, save_sheet
from domains.imagenet.quality import Quality, fewer, nearest_train, observe, pixel_counts, quality_of
from domains.imagenet.sample_stream import SampleStream, balanced_labels, first_of_classes
from domains.imagenet.tokenizers import Tokenizer
from drifting.training.errors import ConfigError
from drifting.training.ranks import Ranks
from drifting.training.world import World

GRID_COLUMNS = 10
LONGEST_WAIT = timedelta(hours=6)  # for rank 0: it may read all training images for their nearest neighbours
GRID_CLASSES = 10
REAL = "training images"

Figures = dict[str, dict[str, float]]
"""Row (an alpha, or real images) -> figures by name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """rows: of the table of the network; details: more, for metrics.json; text: all tables."""

    rows: Figures
    details: dict[str, Any]
    text: str


class Evaluation:
    """What a report measures: samples of generators, the run's real images, and where they are written.

    `generators`: averages of one run by what rows call them, "" where there is one. `world`: the ranks that measure
    together, each its part of the samples; by judges one process alone. Rank 0 alone compares and writes, which may
    take longer than ranks otherwise wait for one another: the others wait for it apart, `LONGEST_WAIT`.

    Raises:
        ConfigError: several ranks for judges, or more of them than samples.
    """

    def __init__(
        self,
        config: ImagenetConfig,
        generators: Mapping[str, OneStepGenerator],
        section: EvalSection,
        run_dir: Path,
        out: Path,
        world: World,
    ) -> None:
        if world.size > 1 and section.network == "judge":
            raise ConfigError("eval.network=judge is measured by one process: start without a launcher")
        self.section = section
        self.world, self.ranks = world, Ranks.connect(LONGEST_WAIT)
        self.run_dir = run_dir
        self.out = out
        self.config = config
        self.device = world.device
        self.tokenizer = build_tokenizer(config, self.device)
        images = images_read(section, config.data)
        generator = next(iter(generators.values()))
        cfg = generator.cfg
        check_images(images, decoded_shape((cfg.channels, cfg.size, cfg.size), self.tokenizer), cfg.num_classes)
        check_decodable(images, run_dir.absolute().parent)
        self.held_out = images.get(f"data.{section.split}")
        self.train = images.get(f"data.{image_key(config.data, 'train')}")
        some = self.held_out or self.train
        self.generators = generators
        self.first = row_name(next(iter(generators)), section.alphas[0])
        num_classes = cfg.num_classes
        self.classes = tuple(some.classes) if some else tuple(str(label) for label in range(num_classes))
        labels = balanced_labels(num_classes, section.samples or section.samples_per_class * num_classes)
        if len(labels) < world.size:
            raise ConfigError(f"eval.samples must be at least {world.size}, one for each rank, got {len(labels)}")
        dtype = torch.uint8 if section.network == "inception" or some is None else some.dtype
        self.stream = SampleStream(
            generator,
            labels,
            dtype,
            rounding=section.rounding,
            batch=section.batch,
            tokenizer=self.tokenizer,
            rank=world.rank,
            ranks=world.size,
        )
        self.columns = min(GRID_COLUMNS, len(labels) // num_classes)
        self.grid = first_of_classes(labels, min(GRID_CLASSES, num_classes), self.columns)

    def plan(self) -> str:
        """What will be compared with what, in a line."""
        section = self.section
        against = f"{len(self.held_out)} {section.split} images" if self.held_out is not None else section.reference
        averages = f" of each of {', '.join(self.generators)}" if len(self.generators) > 1 else ""
        return f"{len(self.stream.labels)} samples at each of alpha {section.alphas}{averages}, against {against}"

    def measured(self) -> Measured:
        """All figures, by the network of the section; pictures and plots are written on the way."""
        return self.by_judges() if self.section.network == "judge" else self.by_inception()

    def by_judges(self) -> Measured:
        """Quality figures relative to real images, and FD(judge), KD(judge), ... beside them."""
        section, train, held_out = self.section, self.train, self.held_out
        assert train is not None and held_out is not None
        judges = load_judges(section, train, judge_cache(section, self.run_dir), self.device, section.judges)
        labels = self.stream.labels
        most, most_held_out = pixel_counts(math.prod(held_out.sample_shape), len(held_out))
        real = observe(in_batches(held_out, section.batch), held_out.labels, judges, pixels=most_held_out)
        of_train = some_of(len(train), len(labels))  # as many as samples at most
        batches = in_batches(train, section.batch, most=len(labels))
        ours = observe(batches, train.labels[of_train], judges, pixels=most)
        matched = fewer(ours.labels, labels)
        qualities = {REAL: quality_of(ours, real, matched, train)}
        figures = {REAL: judge_figures(ours.spaces, real.spaces, section)}
        for row, samples in self.samples():
            ours = observe(samples, labels, judges, pixels=most)
            qualities[row] = quality_of(ours, real, matched, train)
            figures[row] = judge_figures(ours.spaces, real.spaces, section)
            self.pictures(row, judges[0])
        # Of held-out images: what a sample that copies nothing has.
        unseen = nearest_train(real, train)
        rows = {name: relative_figures(quality, qualities[REAL], unseen) for name, quality in qualities.items()}
        details = {"figures": figures, "absolute": {name: asdict(quality) for name, quality in qualities.items()}}
        return Measured(rows, details, f"{quality_table(rows)}\n\n{self.swept(figures, 'FD(judge)', 'IS(judge)')}")

    def by_inception(self) -> Measured:
        """FID, sFID, IS, KID, precision and recall, as far as the reference allows."""
        section = self.section
        network = load_inception_of(section, self.device)
        reference = inception_reference(section, network, self.held_out) if self.world.is_main else None
        self.wait_for_main()
        protocol = protocol_of(section) | {"rounding": section.rounding}
        rows: Figures = {}
        for row, samples in self.samples():
            measured = gather(samples, network).over_ranks()
            if reference is not None:
                rows[row] = figures_of(measured, reference, section)
            self.pictures(row, network)
            self.wait_for_main()
        if reference is None:
            return Measured(rows, protocol, "")
        said = ", ".join(f"{key} {value}" for key, value in protocol.items())
        text = f"the reference serves {reference.serves()}\nprotocol: {said}\n\n{self.swept(rows, 'FID', 'IS')}"
        return Measured(rows, protocol, text)

    def wait_for_main(self) -> None:
        """What follows is done by all ranks together again. A collective call."""
        self.ranks.exchange(None)

    def samples(self) -> Iterator[tuple[str, Iterator[Tensor]]]:
        """The name of each row and batches of its samples; one generator at a time is on the device."""
        for name, generator in self.generators.items():
            self.stream.generator.cpu()
            self.stream.generator = generator.to(self.device)
            for alpha in self.section.alphas:
                yield row_name(name, alpha), self.stream.at(alpha, self.grid)

    def pictures(self, row: str, network: FeatureNetwork) -> None:
        """The sheet of one row; of the first also samples beside real and nearest training images. Collective."""
        images = self.stream.shown(self.grid)
        first = row == self.first
        # One of every class first.
        index = self.grid.view(-1, self.columns).T.flatten()[: self.section.neighbours]
        samples = self.stream.chosen(index) if first and len(index) else None
        if not self.world.is_main:
            return
        save_sheet(self.out / f"samples_{row.replace(', ', '_').replace(' ', '_')}.png", images, self.columns)
        if first and self.held_out is not None:
            rows = min(GRID_CLASSES, len(self.classes))
            columns = min(self.columns, int(self.held_out.labels.bincount(minlength=rows)[:rows].min()))
            ours = images.unflatten(0, (-1, self.columns))[:, :columns].flatten(0, 1)
            beside = real_grid(self.held_out, rows, columns)
            titled = [("real, held out", beside), (f"generated in one step, {row}", ours)]
            save_comparison(self.out / "real_and_generated.png", titled, columns)
        if samples is not None and self.train is not None:
            count = min(SHOWN, len(self.train))
            batches = in_batches(self.train, self.section.batch, dtype=self.stream.dtype)
            nearest = nearest_images(samples, batches, network, count)
            save_neighbours(self.out / "nearest_training_images.png", samples, nearest, self.train)

    def swept(self, rows: Figures, distance: str, score: str) -> str:
        """Table of every guidance scale and of real images, if they are measured; plotted as the paper's Figure 5."""
        sweeps = {
            name: {alpha: rows[row_name(name, alpha)] for alpha in self.section.alphas} for name in self.generators
        }
        lines = {name or self.config.run.name: sweep for name, sweep in sweeps.items()}
        save_sweep(self.out / "guidance_sweep.png", lines, distance=distance, score=score)
        return sweep_table(sweeps, {REAL: rows[REAL]} if REAL in rows else {})


def build_tokenizer(config: ImagenetConfig, device: torch.device) -> Tokenizer | None:
    """What decodes a run's samples; None where they are pixels."""
    return None if config.tokenizer.kind == "none" else config.tokenizer.build().to(device)


def relative_figures(quality: Quality, train: Quality, unseen_nearest: float) -> dict[str, float]:
    """Figures as multiples of what real images score, where a multiple says more than the figure."""
    return {
        "FD(judge) / real": quality.fd / train.fd,
        "FD, same number": quality.fd_matched / train.fd_matched,
        "accuracy": quality.accuracy,
        "std / real": quality.std / train.std,
        "precision": quality.precision,
        "recall": quality.recall,
        "nearest / real": quality.nearest / unseen_nearest,
    }


def real_grid(data: ImageData, classes: int, columns: int) -> Tensor:
    """The first images of the first classes, [classes * columns, C, H, W] float32."""
    return to_float(data.read(first_of_classes(data.labels, classes, columns)))


def quality_table(rows: Figures) -> str:
    """One line per row of figures."""
    names = list(next(iter(rows.values())))
    width = max(len(row) for row in rows)
    lines = [" " * width + "".join(f"  {name:>16}" for name in names)]
    for row, figures in rows.items():
        lines.append(f"{row:<{width}}" + "".join(f"  {figures[name]:>16.3f}" for name in names))
    return "\n".join(lines)
