"""Figures of a generator while it trains: few samples, networks and real images loaded once."""

from pathlib import Path

import torch

from domains.imagenet.config import ImagenetConfig, OneStepGenerator
from domains.imagenet.data.section import load_images
from domains.imagenet.measuring import figures_of, load_measure
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.pictures import save_sheet
from domains.imagenet.sample_stream import SampleStream, balanced_labels, first_of_classes
from domains.imagenet.tokenizers import Tokenizer
from drifting.training.world import World

SHEET_CLASSES, SHEET_COLUMNS = 10, 8


class QuickEvaluation:
    """Measures `eval.quick_samples` samples at each of `eval.alphas`, by one judge or by Inception.

    Of one average, in training the first of ema.decays: the others are for the report, which has `eval.ema`.

    Made before the first step: what is missing is found by `missing_measures`, what does not fit by `check_measures`,
    and a judge that is not in the cache is trained now. The same noise and labels every time, so that figures of one
    run differ by its weights alone. They are of few samples, and above those of the report.

    Each rank makes its share of the samples, and all know the figures of all of them.

    Args:
        config: of the run.
        run_dir: its folder; the cache of judges lies beside it.
        world: this rank; generator and networks are on its device.
        tokenizer: decodes samples; None for pixels.
    """

    def __init__(self, config: ImagenetConfig, run_dir: Path, world: World, tokenizer: Tokenizer | None = None) -> None:
        self.section = section = config.eval
        self.tokenizer, self.world = tokenizer, world
        self.network, self.reference = load_measure(section, config.data, run_dir, world.device)
        self.dtype = torch.uint8
        if section.network == "judge":
            self.dtype = load_images(config.data, section.split).dtype  # small sets are float: judges take both

    def figures(self, generator: OneStepGenerator, sheet: Path | None = None) -> dict[str, float]:
        """`eval/<figure>/alpha_<alpha>` for every figure and guidance scale; takes no part in training's randomness.

        Rank 0 writes samples of the first guidance scale as the picture `sheet`, a class per row. A collective call.
        """
        section = self.section
        labels = balanced_labels(generator.cfg.num_classes, section.quick_samples)
        stream = SampleStream(
            generator,
            labels,
            self.dtype,
            rounding=section.rounding,
            batch=section.batch,
            tokenizer=self.tokenizer,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        columns = min(SHEET_COLUMNS, len(labels) // generator.cfg.num_classes)
        shown = first_of_classes(labels, min(SHEET_CLASSES, generator.cfg.num_classes), columns)
        found = {}
        for alpha in section.alphas:
            measured = gather(stream.at(alpha, shown), self.network).over_ranks()
            figures = figures_of(measured, self.reference, section)
            found |= {f"eval/{name}/alpha_{alpha:g}": value for name, value in figures.items()}
            if sheet is not None and columns and alpha == section.alphas[0]:
                images = stream.shown(shown)
                if self.world.is_main:
                    sheet.parent.mkdir(exist_ok=True)
                    save_sheet(sheet, images, columns)
        return found
