"""Images that cannot be decoded, found before anything is made of the others."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFile
from tqdm import tqdm

from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder, decode
from drifting.training.atomic_file import replace_text

AT_ONCE = 4096  # given to the threads: a million would be held as a million pending calls


@dataclass(frozen=True, slots=True)
class Damaged:
    """An image that cannot be decoded, and why."""

    file: Path
    reason: str


def find_damaged(files: Iterable[Path], *, threads: int = 1, progress: bool = False) -> list[Damaged]:
    """Decode every image to its last row and return those that fail, in the order given.

    A picture that is whole by its format but shows something wrong (a few flipped bits of a JPEG) decodes, and is not
    found.

    Raises:
        DataError: PIL was told to accept truncated files (`ImageFile.LOAD_TRUNCATED_IMAGES`).
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated images would pass. Leave it False")
    listed = list(files)
    bar = tqdm(total=len(listed), desc="checking the images", unit="image", dynamic_ncols=True, disable=not progress)
    found: list[Damaged] = []
    with bar, ThreadPoolExecutor(threads) as pool:  # decoding is C that leaves the interpreter free
        for start in range(0, len(listed), AT_ONCE):
            for damaged in pool.map(_damage, listed[start : start + AT_ONCE]):
                bar.update()
                if damaged is not None:
                    found.append(damaged)
    return found


def refuse_damaged(
    folder: ImageFolder, report: Path, *, skip: bool, threads: int = 1, progress: bool = False
) -> list[str]:
    """The names, relative to the folder, of the damaged images that were allowed to be left out.

    Args:
        folder: all of it is decoded.
        report: where the list of damaged images is written, if there are any.
        skip: leave them out instead of refusing.
        threads: that decode at a time.
        progress: show a bar.

    Raises:
        DataError: there are some, and `skip` is not set.
    """
    damaged = find_damaged(folder.files, threads=threads, progress=progress)
    if not damaged:
        report.unlink(missing_ok=True)
        return []
    report.parent.mkdir(parents=True, exist_ok=True)
    replace_text(report, "".join(f"{each.reason}\n" for each in damaged))
    if not skip:
        raise DataError(
            f"{len(damaged)} of {len(folder)} images in {folder.root} are damaged, the first: {damaged[0].reason}. All "
            f"are listed in {report}. Replace them, or leave them out with skip_damaged=true"
        )
    return [each.file.relative_to(folder.root).as_posix() for each in damaged]


def _damage(file: Path) -> Damaged | None:
    try:
        decode(file)
    except DataError as error:
        return Damaged(file, str(error))
    return None
