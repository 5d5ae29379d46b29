"""That every image of a folder can be decoded: found out before a run begins, and remembered for the next start.

Beside the runs, in .whole_images, lies for every folder what was decoded: 8 bytes of each file's name and length. So a
folder is decoded once, and after that only what is new in it. Damaged images are not remembered but looked at again.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.imagenet.data.damaged_images import find_damaged
from domains.imagenet.data.image_data import DataError, ImageData
from domains.imagenet.data.image_folder import ImageFolder
from drifting.training.atomic_file import replace_text, replacing
from drifting.training.ranks import Ranks

MEMORY = ".whole_images"


class DamagedImagesError(DataError):
    """A folder holds images that cannot be decoded; every rank raises it."""

    agreed = True


def check_decodable(named: Mapping[str, ImageData | None], runs: Path) -> None:
    """Refuse folders with damaged images; data of another kind, or none, pass.

    Ranks share the work, and all know what was found: a collective call.

    Args:
        named: data by the key that names them.
        runs: the folder of run directories, where what was decoded is remembered.

    Raises:
        DamagedImagesError: some cannot be decoded; all of that folder are listed in a file.
    """
    ranks = Ranks.connect()
    try:
        for setting, data in named.items():
            if isinstance(data, ImageFolder):
                _check(data, setting, runs / MEMORY, ranks)
    finally:
        ranks.close()


def _check(folder: ImageFolder, setting: str, memory: Path, ranks: Ranks) -> None:
    root = hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:16]
    remembered, listed = memory / f"{root}.npy", memory / f"{root}.damaged.txt"
    digests = _digests(folder)
    seen = np.isin(digests, np.load(remembered)) if remembered.exists() else np.zeros(len(folder), bool)
    # Each its part of all, whatever it remembers: a file that rank 0 has just written may not be seen elsewhere yet.
    own = np.arange(ranks.rank, len(folder), ranks.count)
    files = folder.files
    pending = [files[index] for index in own[~seen[own]]]
    found = find_damaged(pending, threads=folder.threads, progress=ranks.first and len(pending) > 0)
    ours = [[each.file.relative_to(folder.root).as_posix(), each.reason] for each in found]
    damaged = dict(pair for part in ranks.exchange(ours) for pair in part)
    if ranks.first and not seen.all():
        whole = np.array([name not in damaged for name in folder.names])
        memory.mkdir(parents=True, exist_ok=True)
        with replacing(remembered, several=True) as stream:  # another run may be here
            np.save(stream, digests[whole])
        if damaged:
            replace_text(listed, "".join(f"{name}\n" for name in sorted({*damaged, *folder.left_out})))
    if damaged:
        first = next(iter(damaged.values()))
        others = f", or leave them out with data.leave_out={listed}" if setting == "data.path" else ""
        raise DamagedImagesError(
            f"{setting}: {len(damaged)} of {len(folder)} images in {folder.root} are damaged, the first: {first}. All "
            f"are listed in {listed}. Replace or delete them{others}"
        )


def _digests(folder: ImageFolder) -> NDArray[np.uint64]:
    """Of the name and length of every file, [N]."""
    digests = (hashlib.blake2b(entry.encode(), digest_size=8).digest() for entry in folder.listing)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
