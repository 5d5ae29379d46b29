"""An image folder into a store: checked, read ahead, encoded batch by batch, and gone on with after a kill."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from domains.imagenet.data.chunked_arrays import read_attributes
from domains.imagenet.data.damaged_images import refuse_damaged
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder
from domains.imagenet.data.store_writer import StoreWriter, wait_for_store
from drifting.training.launcher import Placement


def checked_folder(folder: ImageFolder, out: Path, *, skip_damaged: bool, placement: Placement) -> ImageFolder:
    """The folder with every image decoded once, without those that are damaged, if these may be left out.

    A store that was begun has been through this: its images are not decoded again. Rank 0 checks, the others wait.

    Raises:
        DataError: there are damaged images and `skip_damaged` is not set; `<out>.damaged.txt` lists them.
    """
    report = out.with_name(f"{out.name}.damaged.txt")
    if not out.exists() and placement.rank > 0:
        wait_for_store(out)
    if out.exists():
        skipped = read_attributes(out).get("skipped", [])
        if skipped and not skip_damaged:
            raise DataError(f"{out} was begun without {len(skipped)} damaged images; go on with skip_damaged=true")
    else:
        skipped = refuse_damaged(folder, report, skip=skip_damaged, threads=folder.threads, progress=True)
    if skipped and placement.rank == 0:
        tqdm.write(f"WARNING: {len(skipped)} of {len(folder)} images are damaged and left out; {report} lists them")
    return folder.without(skipped) if skipped else folder


def source_attributes(folder: ImageFolder, checked: ImageFolder) -> dict[str, Any]:
    """What a store says of the images that it was made of."""
    kept = {file.relative_to(folder.root).as_posix() for file in checked.files}
    names = [file.relative_to(folder.root).as_posix() for file in folder.files]
    return {
        "classes": list(checked.classes),
        "crop": "adm_centre",
        "size": checked.size,
        "source": {"kind": "image folder", "images": len(checked), "sha256": checked.source},
        "skipped": [name for name in names if name not in kept],
    }


def write_samples(
    writer: StoreWriter,
    read: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], NDArray[Any]],
    *,
    batch: int,
    placement: Placement,
    doing: str,
) -> int:
    """Write this rank's chunks that are still to write; how many samples that were.

    `read`: indices [n] -> what `encode` takes, a batch ahead in a thread; `encode`: that -> samples [n, ...].
    Batches begin anew with each chunk, so that a chunk does not depend on where the command was stopped before.
    """
    own = range(placement.rank, writer.chunks, placement.size)
    pending = list(writer.pending(placement.rank, placement.size))
    total = sum(len(writer.chunk_rows(number)) for number in own)
    left = sum(len(writer.chunk_rows(number)) for number in pending)
    bar = tqdm(
        total=total,
        initial=total - left,
        desc=doing if placement.size == 1 else f"{doing} (rank 0 of {placement.size})",
        unit="image",
        dynamic_ncols=True,
        disable=placement.rank > 0,
    )
    plan = [
        (number, torch.arange(start, min(start + batch, writer.chunk_rows(number).stop)))
        for number in pending
        for start in range(writer.chunk_rows(number).start, writer.chunk_rows(number).stop, batch)
    ]
    parts: list[NDArray[Any]] = []
    with bar:
        for (number, indices), given in zip(plan, _ahead(read, [indices for _, indices in plan]), strict=True):
            parts.append(encode(given))
            if int(indices[-1]) == writer.chunk_rows(number).stop - 1:
                writer.write(number, np.concatenate(parts))
                parts = []
            bar.update(len(indices))
    return left


def _ahead(read: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """What `read` gives for each batch, begun while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        following: Future[Tensor] | None = None
        for batch in batches:
            current, following = following, pool.submit(read, batch)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()
