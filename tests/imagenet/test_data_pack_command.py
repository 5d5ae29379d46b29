"""`python -m domains.imagenet.pack_images`: damaged images, two ranks, a kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import truncate, write_images

from domains.imagenet import pack_images
from domains.imagenet.data import folder_to_store
from domains.imagenet.data.folder_to_store import checked_folder
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder
from domains.imagenet.data.pixel_store import PixelStore
from domains.imagenet.pack_images import PackImagesConfig
from drifting.training.errors import ConfigError
from drifting.training.launcher import Placement

REPOSITORY = Path(__file__).parents[2]


def pack(folder, out, **changes) -> None:
    settings = {"folder": str(folder), "out": str(out), "size": 16, "chunk": 4, "workers": 2}
    pack_images.main.__wrapped__(PackImagesConfig(**settings | changes))


def test_damaged_images_are_listed_before_anything_is_written(tmp_path):
    root, out = write_images(tmp_path / "images", {"a": 5, "b": 4}), tmp_path / "out.zarr"
    truncate(root / "a" / "002.png")
    with pytest.raises(DataError, match=r"1 of 9 images .*out\.zarr\.damaged\.txt\. .*skip_damaged=true"):
        pack(root, out)
    assert not out.exists()
    assert "a/002.png cannot be decoded" in (tmp_path / "out.zarr.damaged.txt").read_text()


def test_damaged_images_may_be_left_out_and_the_command_says_so(tmp_path, capsys):
    root, out = write_images(tmp_path / "images", {"a": 5, "b": 4}), tmp_path / "out.zarr"
    truncate(root / "a" / "002.png")
    pack(root, out, skip_damaged=True)
    said = capsys.readouterr()
    assert "WARNING: 1 of 9 images are damaged and left out" in said.out + said.err
    store = PixelStore(out)
    assert store.labels.tolist() == [0] * 4 + [1] * 4
    assert store.store.attributes["skipped"] == ["a/002.png"]
    whole = ImageFolder(root, size=16)
    assert torch.equal(store.read(torch.tensor([2])), whole.read(torch.tensor([3])))
    pack(root, out, skip_damaged=True)  # goes on without decoding everything once more
    said = capsys.readouterr()
    assert "0 images packed now, 8 of 2 classes in all" in said.out
    assert "left out" in said.out + said.err
    with pytest.raises(DataError, match="begun without 1 damaged images"):
        pack(root, out)


def test_a_begun_store_is_not_checked_again(tmp_path, monkeypatch):
    root, out = write_images(tmp_path / "images", {"a": 3}), tmp_path / "out.zarr"
    pack(root, out)
    monkeypatch.setattr(folder_to_store, "refuse_damaged", lambda *_, **__: pytest.fail("decoded again"))
    pack(root, out)


def test_other_ranks_wait_for_the_first_to_check_and_begin(tmp_path):
    root, out = write_images(tmp_path / "images", {"a": 3}), tmp_path / "out.zarr"
    folder, found = ImageFolder(root, size=16), []

    def second():
        found.append(checked_folder(folder, out, skip_damaged=False, placement=Placement(rank=1, size=2)))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.3)
    assert found == []
    pack(root, out)
    thread.join(10)
    assert len(found[0]) == 3


def test_what_is_missing_or_of_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="folder: no folder"):
        pack(tmp_path / "nothing", tmp_path / "out.zarr")
    root = write_images(tmp_path / "images", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="must have 3 class folders"):
        pack(root, tmp_path / "out.zarr", classes=3)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        pack(root, tmp_path / "out.zarr", size=0)


def begin(folder, out, *, rank=0, ranks=1) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        named = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        environment |= {key: str(value) for key, value in named.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # nothing listens: the ranks do not talk
    words = [f"folder={folder}", f"out={out}", "size=64", "chunk=16", "batch=8", "workers=1"]
    command = [sys.executable, "-m", "domains.imagenet.pack_images", *words]
    return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_command_and_two_ranks_leave_what_one_leaves(tmp_path):
    root = write_images(tmp_path / "images", {"a": 150, "b": 150}, sides=(300, 260))
    whole, killed, ranks = (tmp_path / f"{name}.zarr" for name in ("whole", "killed", "ranks"))
    pack(root, whole, size=64, chunk=16, batch=8, workers=1)

    process = begin(root, killed)
    deadline = time.monotonic() + 60
    while len(list(killed.glob("sha256/c.*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {file.name: file.stat().st_mtime_ns for file in (killed / "images").glob("c.*")}
    assert 3 <= len(done) < 19
    assert begin(root, killed).wait(120) == 0
    kept = [name for name, time_ns in done.items() if (killed / "images" / name).stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(done) - 1  # one may have been whole without its checksum

    both = [begin(root, ranks, rank=rank, ranks=2) for rank in (1, 0)]
    assert [process.wait(120) for process in both] == [0, 0]
    first = PixelStore(whole)
    for other in (PixelStore(killed), PixelStore(ranks)):
        assert np.array_equal(other.store.read(np.arange(300)), first.store.read(np.arange(300)))
        assert other.fingerprint == first.fingerprint
