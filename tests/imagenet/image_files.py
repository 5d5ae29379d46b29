"""Folders of small images that tests make themselves."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, counts: dict[str, int], *, sides=(20, 28), seed: int = 0) -> Path:
    """Smooth coloured pictures in class folders, every one another; `sides`: width and height."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize(sides, Image.Resampling.BICUBIC).save(root / name / f"{number:03d}.png")
    return root


def truncate(file: Path) -> None:
    """Cut the second half off."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
