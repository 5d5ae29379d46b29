"""Videos and sheets, read back."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("imageio_ffmpeg")

import imageio_ffmpeg

from domains.robotics.videos import CAPTION, save_frame_sheet, save_video


def frames(count=12, side=64):
    """A bright square that moves from left to right."""
    film = np.zeros((count, side, side, 3), np.uint8)
    for index in range(count):
        film[index, 20:40, index * 4 : index * 4 + 16] = 250
    return list(film)


def test_a_video_holds_the_frames(tmp_path):
    film = frames()
    path = save_video(tmp_path / "media" / "one.mp4", film, fps=10)
    assert [file.name for file in path.parent.iterdir()] == ["one.mp4"]
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    assert facts["codec"].startswith("h264")
    assert facts["size"] == (64, 64)
    assert facts["fps"] == 10
    shown = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in reader]
    assert len(shown) == len(film)
    for seen, given in zip(shown, film, strict=True):
        assert np.abs(seen.astype(int) - given).mean() < 6  # h264 is lossy


@pytest.mark.parametrize(
    "wrong", [[], [np.zeros((63, 64, 3), np.uint8)], [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)]]
)
def test_frames_of_one_even_size(tmp_path, wrong):
    with pytest.raises(ValueError, match="frames must be one or more of one even size"):
        save_video(tmp_path / "one.mp4", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_shows_first_and_last_frames(tmp_path):
    film = frames()
    path = save_frame_sheet(tmp_path / "frames.png", [("seed 1", film), ("seed 2", film[::-1])], columns=4)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * (64 + CAPTION), 4 * 64, 3)
    np.testing.assert_array_equal(sheet[CAPTION : CAPTION + 64, :64], film[0])
    np.testing.assert_array_equal(sheet[CAPTION : CAPTION + 64, -64:], film[-1])
    np.testing.assert_array_equal(sheet[-64:, -64:], film[0])
    assert (sheet[:CAPTION] < 200).any()  # a caption
    with pytest.raises(ValueError, match="at least one frame"):
        save_frame_sheet(path, [("empty", [])])
