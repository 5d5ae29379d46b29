"""The authors' cache of latents, one .pt file per image, into a store of latents that is read many times faster.

    python -m domains.imagenet.import_latents tree=cache/train out=latents.zarr classes=1000

The files hold samples, not posteriors: the store does too, and `data.posterior` has no effect on it. The same command
goes on after it was stopped.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from domains.imagenet.config import CONFIGS
from domains.imagenet.data.folder_to_store import write_samples
from domains.imagenet.data.latent_store import half_precision
from domains.imagenet.data.pt_tree import PtTree, missing_pt_tree
from domains.imagenet.data.store_writer import StoreWriter, wait_for_store
from domains.imagenet.missing import refuse_missing
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.launcher import read_placement


@dataclass
class ImportLatentsConfig:
    """What to import. `tree`: of class folders with .pt files; `out`: the store, .../name.zarr.

    `scale`: what the latents in the files were multiplied by, 0.18215 in the authors'. `classes`: how many there must
    be, null for any number. `chunk`: images in a chunk, null for those that make 32 MB. `workers`: threads that read.
    """

    tree: str
    out: str
    scale: float = 0.18215
    classes: int | None = None
    chunk: int | None = None
    batch: int = 256
    workers: int = 4

    def __post_init__(self) -> None:
        require(self.tree != "", "tree", "a folder of class folders with .pt files", self.tree)
        require(self.out != "", "out", "the store to write", self.out)
        require(0 < self.scale < float("inf"), "scale", "positive and finite", self.scale)
        require(self.classes is None or self.classes >= 1, "classes", "at least 1, or null", self.classes)
        require(self.chunk is None or self.chunk >= 1, "chunk", "at least 1, or null", self.chunk)
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.workers >= 1, "workers", "at least 1", self.workers)


@command(ImportLatentsConfig, "imagenet_import_latents", configs=CONFIGS)
def main(config: ImportLatentsConfig) -> None:
    """Read, check and write."""
    refuse_missing(missing_pt_tree(config.tree, "tree"))
    placement, out = read_placement(os.environ), Path(config.out).expanduser()
    tree = PtTree(Path(config.tree).expanduser(), expected_classes=config.classes, threads=config.workers)
    if placement.rank > 0:
        wait_for_store(out)
    again = shlex.join(["python", "-m", "domains.imagenet.import_latents", *sys.argv[1:]])
    writer = StoreWriter(out, tree.plan(scale=config.scale, command=again, chunk=config.chunk))
    new = write_samples(writer, tree.read, half_precision, batch=config.batch, placement=placement, doing="importing")
    state = "complete" if writer.finish() else "waits for other ranks"
    print(f"{new} images imported now, {len(tree.labels)} of {len(tree.classes)} classes in all: {out} {state}")


if __name__ == "__main__":
    main()
