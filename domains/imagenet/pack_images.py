"""An image folder into a pixel store: every image cropped once, to be read at memory speed ever after.

    python -m domains.imagenet.pack_images folder=imagenette/train size=64 out=imagenette64_train.zarr
    torchrun --nproc-per-node=4 -m domains.imagenet.pack_images folder=imagenet/train size=256 out=in.zarr classes=1000

Every image is decoded once before, and damaged ones are listed. The same command goes on after it was stopped; on a
finished store it compares every chunk with its checksum and makes anew what differs.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from domains.imagenet.config import CONFIGS
from domains.imagenet.data.folder_to_store import checked_folder, source_attributes, write_samples
from domains.imagenet.data.image_folder import ImageFolder, missing_image_folder
from domains.imagenet.data.pixel_store import ARRAY, pixel_samples
from domains.imagenet.data.store_writer import StorePlan, StoreWriter
from domains.imagenet.missing import refuse_missing
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.launcher import read_placement


@dataclass
class PackImagesConfig:
    """What to pack. `folder`: of class folders; `size`: side of the centre crop; `out`: the store, .../name.zarr.

    `classes`: how many there must be (1000 for ImageNet), null for any number. `chunk`: images in a chunk, null for
    those that make 32 MB, at most 2048. `workers`: threads that decode. `skip_damaged` leaves damaged images out.
    """

    folder: str
    out: str
    size: int
    classes: int | None = None
    chunk: int | None = None
    batch: int = 256
    workers: int = 4
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        require(self.folder != "", "folder", "a folder of class folders", self.folder)
        require(self.out != "", "out", "the store to write", self.out)
        require(self.size >= 1, "size", "at least 1", self.size)
        require(self.classes is None or self.classes >= 1, "classes", "at least 1, or null", self.classes)
        require(self.chunk is None or self.chunk >= 1, "chunk", "at least 1, or null", self.chunk)
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.workers >= 1, "workers", "at least 1", self.workers)


@command(PackImagesConfig, "imagenet_pack_images", configs=CONFIGS)
def main(config: PackImagesConfig) -> None:
    """Check, write, and say what is in the store."""
    refuse_missing(missing_image_folder(config.folder, "folder"))
    placement, out = read_placement(os.environ), Path(config.out).expanduser()
    folder = ImageFolder(config.folder, size=config.size, expected_classes=config.classes, threads=config.workers)
    images = checked_folder(folder, out, skip_damaged=config.skip_damaged, placement=placement)
    plan = StorePlan(
        array=ARRAY,
        shape=(config.size, config.size, 3),
        dtype="uint8",
        labels=images.labels.numpy(),
        attributes=source_attributes(folder, images),
        command=shlex.join(["python", "-m", "domains.imagenet.pack_images", *sys.argv[1:]]),
        chunk=config.chunk,
    )
    writer = StoreWriter(out, plan)
    new = write_samples(writer, images.read, pixel_samples, batch=config.batch, placement=placement, doing="packing")
    state = "complete" if writer.finish() else "waits for other ranks"
    print(f"{new} images packed now, {len(images)} of {len(images.classes)} classes in all: {out} {state}")


if __name__ == "__main__":
    main()
