"""What an evaluation would refuse, found before the first step: it is cheap, and a report comes after days."""

from collections.abc import Mapping, Sequence

from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.data.section import DataSection, image_key, load_images
from domains.imagenet.eval_section import EvalSection
from domains.imagenet.measuring import needs_split, needs_train
from domains.imagenet.metrics.feature_network import INCEPTION
from domains.imagenet.metrics.inception import WIDTH, published_weights
from domains.imagenet.metrics.inception_score import AUTHORS_PARTS
from domains.imagenet.metrics.reference import check_reference
from domains.imagenet.tokenizers import Tokenizer
from drifting.training.errors import ConfigError


def check_measures(section: EvalSection, num_classes: int, *, ranks: int = 1) -> None:
    """Refuse too few samples, and with Inception a file that is not its weights or a reference of another protocol.

    Everything that `missing_measures` asks for must be there. `ranks` share the samples on the way.

    Raises:
        ConfigError: naming the key.
    """
    count = section.samples or section.samples_per_class * num_classes
    if count < num_classes:
        raise ConfigError(f"eval.samples must be at least {num_classes}, one of every class, got {count}")
    if count < AUTHORS_PARTS and section.inception_score == "authors":
        raise ConfigError(
            f"eval.samples must be at least {AUTHORS_PARTS} for eval.inception_score=authors, got {count}"
        )
    if section.every and section.quick_samples < ranks:
        raise ConfigError(
            f"eval.quick_samples must be at least {ranks}, one for each rank, got {section.quick_samples}"
        )
    if section.network == "inception":
        published_weights(section.inception)
        if section.reference:
            check_reference(
                section.reference,
                name=INCEPTION,
                width=WIDTH,
                resize=section.resize,
                images=section.reference_images,
            )


def images_read(section: EvalSection, data: DataSection) -> dict[str, ImageData]:
    """The real images that a report reads, by the key that names them.

    Raises:
        DataError: files that are damaged or incomplete.
    """
    splits = [section.split] if needs_split(section) else []
    splits += ["train"] if needs_train(section, neighbours=True) else []
    return {f"data.{image_key(data, split)}": load_images(data, split) for split in splits}


def check_images(read: Mapping[str, ImageData], shape: tuple[int, int, int], classes: Sequence[str] | int) -> None:
    """Refuse images of another shape or other classes than samples, and a class without images.

    Args:
        read: by the key that names them.
        shape: C, H, W of samples, decoded.
        classes: of the training data, in the order of their labels; or their number alone.

    Raises:
        DataError: naming the key.
    """
    for key, images in read.items():
        if isinstance(classes, int):
            if len(images.classes) != classes:
                raise DataError(f"{key} must have {classes} classes, as the generator, got {len(images.classes)}")
            classes = images.classes
        if tuple(images.classes) != tuple(classes):
            raise DataError(f"{key} must have the classes that are trained on: {_difference(images.classes, classes)}")
        if tuple(images.sample_shape) != tuple(shape):
            expected, given = (" x ".join(map(str, each)) for each in (shape, images.sample_shape))
            raise DataError(f"{key} must hold images of {expected}, as samples are, got {given}")
        held = images.labels.bincount(minlength=len(classes))
        if empty := [classes[label] for label in (held == 0).nonzero().flatten().tolist()]:
            raise DataError(f"{key} has {len(empty)} classes without images: {_some(empty)}")


def decoded_shape(sample_shape: tuple[int, int, int], tokenizer: Tokenizer | None) -> tuple[int, int, int]:
    """C, H, W of the images that samples become."""
    height, width = sample_shape[1:]
    return sample_shape if tokenizer is None else (3, height * tokenizer.downscale, width * tokenizer.downscale)


def _difference(given: Sequence[str], expected: Sequence[str]) -> str:
    lacking, foreign = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    parts = [f"it lacks {_some(lacking)}"] if lacking else []
    parts += [f"it has {_some(foreign)} besides"] if foreign else []
    return ", ".join(parts) or f"they are the same in another order, {_some(given)}"


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)})" if len(names) > limit else "")
