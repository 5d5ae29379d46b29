"""Filmed episodes as mp4 (h264) and as one sheet of stills."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domains.robotics.environments.requirements import simulator_package
from drifting.training.atomic_file import replacing, sync_folder

QUALITY = 22  # constant rate factor of h264, lower is better
CAPTION = 18  # pixels


def save_video(path: Path, frames: Sequence[np.ndarray], *, fps: int = 10) -> Path:
    """Write uint8 frames [S, S, 3], S even, to `path`, which ends in .mp4; returns it.

    The file has its name only when it is whole. Raises ValueError for no frames, or frames of different or odd sizes.
    """
    ffmpeg = simulator_package("imageio_ffmpeg")  # brings its own binary
    shapes = {frame.shape for frame in frames}
    height, width = next(iter(shapes))[:2] if shapes else (0, 0)
    if len(shapes) != 1 or height % 2 or width % 2:
        raise ValueError(f"frames must be one or more of one even size (h264 halves the colours), got {sorted(shapes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.mp4")  # ffmpeg chooses the container by the ending
    writer = ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", str(QUALITY)],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame, dtype=np.uint8))
        writer.close()
        temporary.replace(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def check_encoder(frames: Sequence[np.ndarray]) -> None:
    """Encode `frames` and throw the video away: raises now what `save_video` would raise at the end of the work."""
    with TemporaryDirectory() as folder:
        save_video(Path(folder) / "trial.mp4", frames)


def save_frame_sheet(
    path: Path, films: Sequence[tuple[str, Sequence[np.ndarray]]], *, columns: int = 8, fps: int = 10
) -> Path:
    """Write a PNG with one row of stills per captioned film, evenly spaced from its first frame to its last."""
    if not films or any(len(frames) == 0 for _, frames in films):
        raise ValueError("films must be one or more (caption, frames), with at least one frame each")
    side = max(frames[0].shape[0] for _, frames in films)
    sheet = Image.new("RGB", (columns * side, len(films) * (side + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(CAPTION - 6)
    for row, (caption, frames) in enumerate(films):
        top = row * (side + CAPTION)
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            text = f"{caption}    0 s" if column == 0 else f"{index / fps:.1f} s"
            draw.text((column * side + 4, top + 2), text, fill="#333333", font=font)
            sheet.paste(Image.fromarray(frames[index]), (column * side, top + CAPTION))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        sheet.save(file, format="PNG", optimize=True)
    return path
