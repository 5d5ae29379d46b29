r"""Statistics of real images as a file that `python -m domains.imagenet.evaluate eval.reference=FILE` compares with.

    python -m domains.imagenet.make_reference images=imagenet/train size=256 out=imagenet256.npz \
        inception=weights-inception-2015-12-05-6726825d.pth

Of images without flips: a pixel store, or a folder of class folders, cropped at the centre to `size`.
Beside the statistics the file holds the features of `keep` images, for KID, precision and recall.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from domains.imagenet.config import CONFIGS
from domains.imagenet.data.section import open_images
from domains.imagenet.eval_section import RESIZES
from domains.imagenet.measuring import REFERENCE_FEATURES
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.image_batches import in_batches, some_of
from domains.imagenet.metrics.inception import load_inception, missing_inception
from domains.imagenet.metrics.reference import write_reference
from domains.imagenet.missing import Missing, refuse_missing
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.devices import chosen_device


@dataclass
class MakeReferenceConfig:
    """Images in, npz file out."""

    images: str
    out: str
    inception: str = ""
    resize: str = "tf1"
    size: int = 256
    keep: int = REFERENCE_FEATURES
    batch: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.resize in RESIZES, "resize", " or ".join(RESIZES), self.resize)
        require(self.out.endswith(".npz"), "out", "a file that ends in .npz", self.out)
        for name in ("size", "keep", "batch"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))


@command(MakeReferenceConfig, "imagenet_make_reference", configs=CONFIGS)
def main(config: MakeReferenceConfig) -> None:
    """Write the file."""
    missing = missing_inception(config.inception, "inception")
    if "://" not in config.images and not Path(config.images).expanduser().exists():
        missing.append(Missing("images", f"{config.images} does not exist", "images=FOLDER or STORE"))
    refuse_missing(missing)
    network = load_inception(config.inception, resize=config.resize).to(chosen_device(config.device))
    data = open_images(config.images, config.size)
    keep = torch.zeros(len(data), dtype=torch.bool)
    keep[some_of(len(data), config.keep)] = True
    real = gather(in_batches(data, config.batch), network, keep=keep, with_logits=False)
    write_reference(Path(config.out), real, resize=config.resize)
    print(f"{config.out}: {len(data)} images, features of {len(real.pooled)} of them, resize {config.resize}")


if __name__ == "__main__":
    main()
