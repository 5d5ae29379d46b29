r"""Measure a trained run, or any images, against held-out images or a published reference.

    python -m domains.imagenet.evaluate run=runs/digits
    python -m domains.imagenet.evaluate run=runs/L2 eval.network=inception eval.inception=weights-inception-....pth \
        eval.reference=VIRTUAL_imagenet256_labeled.npz eval.samples=50000 eval.alphas=[1,1.1,1.2,1.5,2]
    python -m domains.imagenet.evaluate run=runs/L2 eval.ema=all           every average of the run at every alpha
    torchrun --nproc-per-node=8 -m domains.imagenet.evaluate run=runs/L2 eval.network=inception ...   on eight GPUs
    python -m domains.imagenet.evaluate images=samples.npz out=figures eval.network=inception ...

`images` is an npz file of ADM's layout (arr_0), a pixel store or a folder of class folders. By default the network is a
judge, trained on the training images of the run (or of `data`, where `images` is given): its figures are called
FD(judge), and compare within one data set. FID, sFID, IS and KID need the published Inception network.
A run is measured as its own `eval` section says; the keys that are given here go before it. Where its images have been
moved, data.path, data.test, ... say where they lie now.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.imagenet.check_measures import check_measures
from domains.imagenet.config import CONFIGS, ImagenetConfig, OneStepGenerator
from domains.imagenet.data.section import DataSection, open_images
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.evaluation import Evaluation, Figures, Measured
from domains.imagenet.measuring import figures_of, load_measure, missing_measures, protocol_of
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.npz_images import npz_images
from domains.imagenet.missing import Missing, refuse_missing
from domains.imagenet.sampling import generate, load_averages
from domains.imagenet.tokenizers import Tokenizer
from domains.imagenet.tokenizers.section import missing_tokenizer
from drifting.training.atomic_file import replace_text
from drifting.training.command_line import command, given_keys
from drifting.training.config import ParallelConfig, RunConfig, require, require_device
from drifting.training.devices import chosen_device
from drifting.training.errors import ConfigError
from drifting.training.launch import device_of, prepare
from drifting.training.launcher import read_placement
from drifting.training.run_dir import load_config
from drifting.training.world import World

# Keys without effect: how a run reads what it learns, and figures on its way; ...
NOT_OF_A_RUN = (
    *(f"data.{key}" for key in ("kind", "size", "crop", "flip", "posterior", "num_classes")),
    *("eval.every", "eval.quick_samples"),
)
# ... what a generator is asked for, and what a report on it shows.
NOT_OF_IMAGES = (
    *(f"data.{key}" for key in ("crop", "flip", "posterior", "num_classes")),
    *(f"eval.{key}" for key in ("alphas", "samples_per_class", "samples", "judges", "rounding", "neighbours", "ema")),
    *("eval.every", "eval.quick_samples"),
)


@dataclass
class EvaluateConfig:
    """Either `run`, a run directory of training, or `images`. `eval`: as in training; of a run, only what shall differ.

    data: of the judge and the real images, where `images` is given; of a run the places that have changed. device: of
    the evaluation, whatever a run was trained on. out: folder of what is written; the run's where empty.
    """

    run: str = ""
    images: str = ""
    out: str = ""
    device: str = "auto"
    threads: int = 1
    data: DataSection = field(default_factory=DataSection)
    eval: EvalSection = field(default_factory=EvalSection)

    def __post_init__(self) -> None:
        which = "a run directory, or images=<npz, pixel store or folder>, and not both"
        require((self.run == "") != (self.images == ""), "run", which, f"run={self.run!r}, images={self.images!r}")
        require(self.run != "" or self.out != "", "out", "a folder for the figures, where images is given", self.out)
        require_device("device", self.device)
        require(self.threads >= 1, "threads", "at least 1", self.threads)


@command(EvaluateConfig, "imagenet_evaluate", configs=CONFIGS)
def main(config: EvaluateConfig) -> None:
    """Evaluate the newest checkpoint of a run, or images."""
    given = given_keys()
    world = ranks_of(config)
    if config.run:
        refuse_without_effect(given, NOT_OF_A_RUN, "run")
        run_dir = Path(config.run)
        section, data = section_of_run(run_dir, config.eval, given), data_of_run(run_dir, config.data, given)
        report(run_dir, section, out=Path(config.out) if config.out else None, data=data, world=world)
        world.finish()
    elif world.size > 1:
        raise ConfigError("images are measured by one process: start without a launcher")
    else:
        refuse_without_effect(given, NOT_OF_IMAGES, "images")
        measure_images(config)


def ranks_of(config: EvaluateConfig) -> World:
    """The processes that a launcher has started, or this one alone."""
    placement = read_placement(os.environ)
    device_of(config.device, placement, "device")  # refuses by the name that it has here
    return prepare(
        RunConfig(name="evaluate", steps=1, device=config.device, threads=config.threads),
        ParallelConfig(mode="ddp" if placement.size > 1 else "single"),
    )


def section_of_run(run_dir: Path, asked: EvalSection, given: frozenset[str] | None) -> EvalSection:
    """The `eval` section that the run was trained with, but for the keys `given`; all that is asked where it is None.

    Raises:
        RunDirError: not a run directory of image training.
        ConfigError: keys that do not go with those of the run.
    """
    if given is None:
        return asked
    return replace(load_config(run_dir, ImagenetConfig).eval, **_given(asked, "eval", given))


def data_of_run(run_dir: Path, asked: DataSection, given: frozenset[str] | None) -> DataSection:
    """The `data` section that the run was trained with, but for the keys `given`.

    Raises:
        RunDirError: not a run directory of image training.
    """
    return replace(load_config(run_dir, ImagenetConfig).data, **_given(asked, "data", given or frozenset()))


def _given(asked: EvalSection | DataSection, name: str, given: frozenset[str]) -> dict[str, Any]:
    return {key.name: getattr(asked, key.name) for key in fields(asked) if f"{name}.{key.name}" in given}


def refuse_without_effect(given: frozenset[str] | None, keys: Sequence[str], measured: str) -> None:
    """ConfigError for keys of the command line that would change nothing about what is `measured`: run or images."""
    if without := sorted((given or frozenset()).intersection(keys)):
        raise ConfigError(f"{', '.join(without)}: without effect where {measured} is given; leave away")


def report(
    run_dir: Path,
    section: EvalSection,
    *,
    out: Path | None = None,
    data: DataSection | None = None,
    world: World | None = None,
) -> Figures:
    """Write metrics.json, plots and sheets into a run directory, or into `out`; print the tables.

    `data`: instead of that which the run was trained with. `world`: the ranks that measure together, a collective call
    whose figures rank 0 returns; None is this process alone, on the device of the run.

    Raises:
        ConfigError: something is missing: all of it is listed, before the first sample.
    """
    config, generators, step = load_averages(run_dir, section)
    config = replace(config, data=data or config.data)
    world = world or World(chosen_device(config.run.device))
    refuse_missing(missing_measures(section, config.data) + missing_tokenizer(config.tokenizer))
    check_measures(section, next(iter(generators.values())).cfg.num_classes)
    folder = out or run_dir
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(config, generators, section, run_dir, folder, world)
    world.say(f"evaluating step {step}: {evaluation.plan()}")
    found = evaluation.measured()
    if world.is_main:
        conclude(evaluation, found, step)
    evaluation.wait_for_main()
    evaluation.ranks.close()
    return found.rows


def conclude(evaluation: Evaluation, found: Measured, step: int) -> None:
    """Write metrics.json and print the tables."""
    section, folder = evaluation.section, evaluation.out
    speed = samples_per_second(evaluation.stream.generator, evaluation.tokenizer, most=section.batch)
    samples = len(evaluation.stream.labels)
    decays = section.averages(evaluation.config.ema.decays)
    figures = {"step": step, "ema": decays, "split": section.split, "judges": section.judges, "samples": samples}
    figures |= {"samples_per_second": speed, "network": section.network, "rows": found.rows} | found.details
    replace_text(folder / "metrics.json", json.dumps(figures, indent=2) + "\n")
    print(f"\n{found.text}\n")
    print(f"one-step sampler: {speed:,.0f} images/s on this machine, {torch.get_num_threads()} thread(s)")
    print(f"everything lies in {folder}: metrics.json, samples_*.png, guidance_sweep.png, ...")


def measure_images(config: EvaluateConfig) -> dict[str, float]:
    """Figures of images that lie somewhere; written to <out>/metrics.json.

    Raises:
        ConfigError: something is missing.
    """
    section = config.eval
    if not Path(config.images).expanduser().exists() and "://" not in config.images:
        own = [Missing("images", f"{config.images} does not exist", "images=FILE.npz, STORE or FOLDER")]
    else:
        own = []
    refuse_missing(own + missing_measures(section, config.data, neighbours=False))
    out = Path(config.out)
    network, reference = load_measure(section, config.data, out, chosen_device(config.device))
    protocol = protocol_of(section)
    print(f"the reference serves {reference.serves(network.name)}")
    print("protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items()))
    try:
        measured = gather(opened(config.images, config.data.size, section.batch), network)
    except ValueError as error:  # of another shape than the network's
        raise ConfigError(f"images={config.images}: {error}") from error
    figures = figures_of(measured, reference, section)
    out.mkdir(parents=True, exist_ok=True)
    content = {"images": config.images, "samples": measured.moments.count, "network": section.network}
    content |= {**protocol, "figures": figures}
    replace_text(out / "metrics.json", json.dumps(content, indent=2) + "\n")
    print("\n".join(f"{name:<20}{value:>12.4f}" for name, value in figures.items()))
    print(f"of {measured.moments.count} images; written to {out}/metrics.json")
    return figures


def opened(path: str, size: int, batch: int) -> Iterator[Tensor]:
    """Batches of uint8 images of an npz file in its order, or of a pixel store or a folder in a random one.

    A folder is sorted by class, and the Inception score of "adm" takes parts in order: they shall hold all classes.
    """
    if path.endswith(".npz"):
        yield from npz_images(Path(path).expanduser(), batch)
        return
    data = open_images(path, size)
    for part in torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(batch):
        yield data.read(part)


def samples_per_second(
    generator: OneStepGenerator, tokenizer: Tokenizer | None, *, most: int, seconds: float = 2.0
) -> float:
    """Throughput of sampling, noise and decoding included: the best batch of at most `most` within about `seconds`."""
    best, batch, began = 0.0, 1, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        generate(
            generator,
            torch.arange(batch) % generator.cfg.num_classes,
            1.0,
            seed=batch,
            batch=batch,
            tokenizer=tokenizer,
        )
        best = max(best, batch / (time.perf_counter() - start))
        batch = min(2 * batch, most)
    return best


if __name__ == "__main__":
    main()
