"""The networks and real images that samples of a run are measured with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from domains.imagenet.data.image_data import ImageData
from domains.imagenet.data.section import DataSection, load_images, missing_images
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.judge import Judge, load_judge
from domains.imagenet.metrics.feature_network import FeatureNetwork
from domains.imagenet.metrics.feature_set import FeatureSet, gather
from domains.imagenet.metrics.image_batches import in_batches
from domains.imagenet.metrics.image_metrics import compare
from domains.imagenet.metrics.inception import Inception, load_inception, missing_inception
from domains.imagenet.metrics.reference import PUBLISHED, Reference, missing_reference, read_reference
from domains.imagenet.missing import Missing
from drifting.training.errors import ConfigError

JUDGE_SEED = 1001  # of the first judge: no run's own seed
JUDGE_FEATURES = 3000  # images at most whose features KD, precision and recall of a judge compare
JUDGE_SUBSETS = 10  # of KD: subsets are hardly smaller than the sets
REFERENCE_FEATURES = 10_000  # the same of real images in Inception features: ADM's number


def needs_split(section: EvalSection) -> bool:
    """Whether images of the split are compared with."""
    return section.network == "judge" or not section.reference


def needs_train(section: EvalSection, *, neighbours: bool) -> bool:
    """Whether training images are read: by judges, or as nearest neighbours of samples."""
    return section.network == "judge" or (neighbours and section.neighbours > 0)


def missing_measures(section: EvalSection, data: DataSection, *, neighbours: bool = True) -> list[Missing]:
    """Everything that an evaluation needs and does not find; nothing is loaded.

    Raises:
        ConfigError: a reference for a judge.
    """
    if section.network == "judge" and (named := section.reference or section.reference_images):
        raise ConfigError(
            "eval.reference must be empty for eval.network=judge, whose reference is the images of the run, "
            f"got {named}"
        )
    missing = missing_images(data, section.split) if needs_split(section) else []
    if needs_train(section, neighbours=neighbours):
        missing += [entry for entry in missing_images(data, "train") if entry not in missing]
    if section.network == "inception":
        missing += missing_inception(section.inception)
        made = f"python -m domains.imagenet.make_reference images=FOLDER out={section.reference}"
        made += f" inception={section.inception or 'FILE'} resize={section.resize}"
        made = f"{PUBLISHED}\n# or statistics of your own images, whose FID compares with no published one:\n{made}"
        missing += missing_reference(section.reference, "eval.reference", made)
        images = f"{PUBLISHED}\n# an npz file with images as arr_0, which ADM's holds"
        missing += missing_reference(section.reference_images, "eval.reference_images", images)
    return missing


def judge_cache(section: EvalSection, run_dir: Path) -> Path:
    """Folder of trained judges."""
    return Path(section.judge_cache).expanduser() if section.judge_cache else run_dir.absolute().parent / ".judges"


def load_judges(section: EvalSection, train: ImageData, cache: Path, device: torch.device, count: int) -> list[Judge]:
    """The first `count` judges of these training images, from the cache or trained now."""
    return [load_judge(train, JUDGE_SEED + index, cache, device) for index in range(count)]


def load_inception_of(section: EvalSection, device: torch.device) -> Inception:
    """The published network, on a device."""
    return load_inception(section.inception, resize=section.resize).to(device)


def inception_reference(section: EvalSection, network: Inception, held_out: ImageData | None) -> Reference:
    """The reference file, or the images of the split in its place."""
    if section.reference:
        return read_reference(section.reference, network, images=section.reference_images, batch=section.batch)
    if held_out is None:
        raise ValueError("held_out must be given where eval.reference is empty")
    batches = in_batches(held_out, section.batch, dtype=torch.uint8)
    return Reference.of(gather(batches, network, with_logits=False).thinned(REFERENCE_FEATURES))


def load_measure(
    section: EvalSection, data: DataSection, run_dir: Path, device: torch.device
) -> tuple[FeatureNetwork, Reference]:
    """One network, Inception or the first judge, and the real images in its space."""
    held_out = load_images(data, section.split) if needs_split(section) else None
    if section.network == "inception":
        network = load_inception_of(section, device)
        return network, inception_reference(section, network, held_out)
    train = load_images(data, "train")
    judge = load_judges(section, train, judge_cache(section, run_dir), device, count=1)[0]
    assert held_out is not None  # a judge needs the split
    real = gather(in_batches(held_out, section.batch), judge, with_logits=False)
    return judge, Reference.of(real.thinned(JUDGE_FEATURES))


def protocol_of(section: EvalSection) -> dict[str, str]:
    """What figures of the same images depend on, by name; without it they do not compare."""
    source = section.reference or f"{section.split} images"
    images = {"reference_images": section.reference_images} if section.reference_images else {}
    resize = {"resize": section.resize} if section.network == "inception" else {}
    return {"reference": source, **images, **resize, "inception_score": section.inception_score}


def figures_of(ours: FeatureSet, real: Reference, section: EvalSection) -> dict[str, float]:
    """`compare` by the protocol of the section, at the cost that suits its network."""
    if section.network == "inception":
        return compare(ours, real, protocol=section.inception_score)
    thinned = ours.thinned(JUDGE_FEATURES)
    return compare(thinned, real, protocol=section.inception_score, subsets=JUDGE_SUBSETS)


def judge_figures(
    spaces: Sequence[FeatureSet], held_out: Sequence[FeatureSet], section: EvalSection
) -> dict[str, float]:
    """FD(judge), IS(judge) and so on: means over judges of sets in the space of each."""
    each = [
        figures_of(ours, Reference.of(theirs.thinned(JUDGE_FEATURES)), section)
        for ours, theirs in zip(spaces, held_out, strict=True)
    ]
    return {name: sum(figures[name] for figures in each) / len(each) for name in each[0]}
