"""Chunked stores and the pixel store: what is written is what is read, after kills, by ranks, from anywhere."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import zarr
from image_files import write_images

from domains.imagenet.data import folder_to_store
from domains.imagenet.data.chunked_arrays import StoredSamples, missing_store, read_attributes
from domains.imagenet.data.folder_to_store import source_attributes, write_samples
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder
from domains.imagenet.data.pixel_store import PixelStore, missing_pixel_store, pixel_samples
from domains.imagenet.data.store_writer import StorePlan, StoreWriter
from drifting.training.launcher import Placement

N, CHUNK, BATCH = 23, 8, 3
FORK = multiprocessing.get_context("fork")
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("images"), {"b": 9, "a": 14})
    return ImageFolder(root, size=16)


def plan_of(folder, **changes) -> StorePlan:
    settings = {
        "array": "images",
        "shape": (16, 16, 3),
        "dtype": "uint8",
        "labels": folder.labels.numpy(),
        "attributes": source_attributes(folder, folder),
        "command": "python -m again",
        "chunk": CHUNK,
    }
    return StorePlan(**settings | changes)


def fill(path, folder, *, read=None, rank=0, ranks=1, finish=True) -> int:
    writer = StoreWriter(path, plan_of(folder))
    placement = Placement(rank=rank, size=ranks)
    read = folder.read if read is None else read
    new = write_samples(writer, read, pixel_samples, batch=BATCH, placement=placement, doing="packing")
    if finish:
        writer.finish()
    return new


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "packed.zarr"
    assert fill(path, folder) == N
    return path


def contents(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_packed_folder_reads_as_the_folder(folder, packed):
    store = PixelStore(packed)
    assert store.store.mapped
    assert store.classes == folder.classes == ("a", "b")
    assert torch.equal(store.labels, folder.labels)
    assert store.sample_shape == (3, 16, 16)
    indices = torch.tensor([22, 0, 7, 8, 22, 15, 16, 1])  # across chunks, out of order, twice
    assert torch.equal(store.read(indices), folder.read(indices))
    assert torch.equal(store.read(torch.arange(N)), folder.read(torch.arange(N)))
    assert store.read(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 16, 16)
    attributes = store.store.attributes
    assert attributes["complete"] is True
    assert (attributes["size"], attributes["crop"]) == (16, "adm_centre")
    assert attributes["source"]["images"] == N
    with pytest.raises(IndexError, match=r"\[0, 23\)"):
        store.read(torch.tensor([23]))
    with pytest.raises(IndexError, match="-1"):
        store.read(torch.tensor([-1]))


def test_the_last_chunk_is_padded_and_the_map_equals_a_read_by_zarr(packed):
    array = zarr.open_group(packed, mode="r")["images"]
    files = sorted((packed / "images").glob("c.*"))
    assert len(files) == 3  # 8 + 8 + 7
    assert {file.stat().st_size for file in files} == {CHUNK * 16 * 16 * 3}
    samples = StoredSamples(packed, "images")
    assert np.array_equal(samples.read(np.arange(N)), array[:])
    assert np.array_equal(samples.read(np.arange(16, N)), array[16:])


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="counts open files as Linux shows them")
def test_mapped_chunks_keep_no_file_open(packed):
    samples = StoredSamples(packed, "images")
    before = len(list(OPEN_FILES.iterdir()))
    samples.read(np.arange(N))  # all chunks: those of ImageNet are more than a process may open
    assert len(list(OPEN_FILES.iterdir())) == before
    assert not samples._map(0).flags.writeable


def test_flips_are_drawn_sample_by_sample(packed):
    store = PixelStore(packed)
    plain = store.read(torch.tensor([3]))[0]
    drawn = store.read(torch.full((200,), 3), torch.Generator().manual_seed(0))
    flipped = (drawn == plain.flip(-1)).flatten(1).all(1)
    assert ((drawn == plain).flatten(1).all(1) ^ flipped).all()
    assert 70 < int(flipped.sum()) < 130
    assert (PixelStore(packed, flip=False).read(torch.full((9,), 3), torch.Generator()) == plain).all()


def test_a_killed_command_goes_on_and_leaves_the_same_bytes(folder, packed, tmp_path):
    path, seen = tmp_path / "killed.zarr", tmp_path / "seen"

    def slowly(indices):
        if int(indices[0]) >= 16:
            time.sleep(60)  # killed here: two chunks are there, the third is begun
        return folder.read(indices)

    process = FORK.Process(target=fill, args=(path, folder), kwargs={"read": slowly})
    process.start()
    deadline = time.monotonic() + 60
    while len(list(path.glob("sha256/c.*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match=r"is not complete: .* python -m again"):
        PixelStore(path)
    assert missing_pixel_store(str(path), "data.path")[0].command == "python -m again"
    # What a kill within the writing of a chunk leaves: a hidden half of it.
    (path / "images" / ".c.2.0.0.0.tmp").write_bytes(b"half")

    def counted(indices):
        with seen.open("a") as file:
            file.write(f"{indices.tolist()}\n")
        return folder.read(indices)

    assert fill(path, folder, read=counted) == 7
    assert [json.loads(line) for line in seen.read_text().splitlines()] == [[16, 17, 18], [19, 20, 21], [22]]
    assert contents(path) == contents(packed)
    assert fill(path, folder, read=counted) == 0  # nothing is left to do
    assert len(seen.read_text().splitlines()) == 3


def test_two_processes_write_disjoint_chunks_of_the_same_store(folder, packed, tmp_path):
    path = tmp_path / "ranks.zarr"
    StoreWriter(path, plan_of(folder))
    others = [FORK.Process(target=fill, args=(path, folder), kwargs={"rank": rank, "ranks": 2}) for rank in range(2)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert contents(path) == contents(packed)
    assert PixelStore(path).fingerprint == PixelStore(packed).fingerprint


def test_a_rank_alone_does_not_complete_the_store(folder, tmp_path):
    path = tmp_path / "one.zarr"
    assert fill(path, folder, rank=1, ranks=2) == 8
    assert not read_attributes(path)["complete"]
    with pytest.raises(DataError, match="not complete"):
        PixelStore(path)
    assert fill(path, folder) == 15  # another number of ranks goes on
    assert read_attributes(path)["complete"]


def flip_a_byte(file) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_is_found_and_made_anew(folder, packed, tmp_path):
    path = tmp_path / "flipped.zarr"
    fill(path, folder)
    assert list(StoredSamples(path, "images").damaged_chunks()) == []
    flip_a_byte(path / "images" / "c.1.0.0.0")
    assert list(StoredSamples(path, "images").damaged_chunks()) == [1]
    assert fill(path, folder) == 8
    assert contents(path) == contents(packed)


def test_missing_and_shortened_chunks_are_refused_on_opening(folder, tmp_path):
    path = tmp_path / "short.zarr"
    fill(path, folder)
    last = path / "images" / "c.2.0.0.0"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"c\.2\.0\.0\.0 has 6143 bytes, expected 6144\. .*python -m again"):
        PixelStore(path)
    last.unlink()
    with pytest.raises(DataError, match=r"c\.2\.0\.0\.0 is missing"):
        PixelStore(path)


def compress(packed, path, **options):
    """A copy as somebody else would make it."""
    source = zarr.open_group(packed, mode="r")
    copy = zarr.open_group(path, mode="w", zarr_format=3, attributes=source.attrs.asdict())
    for name, array in source.arrays():
        copy.create_array(name, data=array[:], chunks=array.chunks, **(options if name == "images" else {}))
    return path


@pytest.mark.parametrize("options", [{"compressors": "auto"}, {"compressors": None, "shards": (16, 16, 16, 3)}])
def test_compressed_and_sharded_stores_are_read_through_zarr(folder, packed, tmp_path, options):
    store = PixelStore(compress(packed, tmp_path / "compressed.zarr", **options))
    assert not store.store.mapped
    indices = torch.tensor([22, 0, 7, 8, 22, 15, 1])
    assert torch.equal(store.read(indices), folder.read(indices))
    assert torch.equal(
        store.read(torch.tensor([3]), torch.Generator().manual_seed(1)).sum(), folder.read(torch.tensor([3])).sum()
    )
    assert list(store.store.damaged_chunks()) == []


def test_a_store_behind_a_url_is_read(folder, packed):
    files = fsspec.filesystem("memory")
    for name, content in contents(packed).items():
        files.pipe(f"/stores/images.zarr/{name}", content)
    store = PixelStore("memory://stores/images.zarr")
    assert not store.store.mapped
    assert torch.equal(store.read(torch.tensor([22, 0, 8])), folder.read(torch.tensor([22, 0, 8])))
    assert list(store.store.damaged_chunks()) == []
    assert missing_store("memory://stores/images.zarr", "data.path", "make it") == []
    files.rm("/stores/images.zarr/images/c.1.0.0.0")
    with pytest.raises(DataError, match="2 of 3 chunks"):
        PixelStore("memory://stores/images.zarr")


def test_a_read_in_a_worker_process_equals_one_here(folder, packed, tmp_path):
    indices = torch.tensor([22, 0, 9])
    for path in (packed, compress(packed, tmp_path / "compressed.zarr")):
        store = PixelStore(path)
        expected = store.read(indices)
        here = pickle.loads(pickle.dumps(store))
        assert len(pickle.dumps(store)) < 20_000  # not the pixels
        assert torch.equal(here.read(indices), expected)
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=lambda store=store, sender=sender: sender.send(store.read(indices).tolist()))
        process.start()
        assert receiver.poll(30), "the forked process did not answer"
        assert receiver.recv() == expected.tolist()
        process.join()


def test_a_store_of_other_settings_or_sources_is_not_gone_on_with(folder, packed, tmp_path):
    attributes = source_attributes(folder, folder)
    with pytest.raises(DataError, match=r"was begun with crop \"adm_centre\"; this command has \"other\""):
        StoreWriter(packed, plan_of(folder, attributes=attributes | {"crop": "other"}))
    with pytest.raises(DataError, match=r"was begun with layout .* in chunks of 8"):
        StoreWriter(packed, plan_of(folder, chunk=4))
    fewer = folder.without(["a/000.png"])
    with pytest.raises(DataError, match=r"was begun with (source|skipped)"):
        StoreWriter(packed, plan_of(fewer, attributes=source_attributes(folder, fewer)))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no store at"):
        StoreWriter(tmp_path / "other", plan_of(folder))


def test_no_store_and_another_kind_are_refused(packed, tmp_path):
    with pytest.raises(DataError, match=r"no store at .*nothing"):
        PixelStore(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no moments but images, labels, sha256"):
        StoredSamples(packed, "moments")
    zarr.open_group(tmp_path / "foreign.zarr", mode="w")
    with pytest.raises(DataError, match="is no store of this version"):
        PixelStore(tmp_path / "foreign.zarr")
    [missing] = missing_pixel_store(str(tmp_path / "nothing"), "data.path")
    assert "pack_images" in missing.command
    assert missing_pixel_store(str(packed), "data.path") == []


def test_chunks_of_the_wrong_shape_or_type_are_refused(folder, tmp_path):
    writer = StoreWriter(tmp_path / "wrong.zarr", plan_of(folder))
    with pytest.raises(ValueError, match=r"chunk 2 must be \(7, 16, 16, 3\) uint8"):
        writer.write(2, np.zeros((8, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        writer.write(0, np.zeros((8, 16, 16, 3), np.float32))


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [((2, 8, 32, 32), "float16", 1024), ((256, 256, 3), "uint8", 128), ((8, 8, 3), "uint8", 2048)],
)
def test_a_chunk_holds_at_most_32_megabytes(shape, dtype, rows):
    plan = StorePlan("x", shape, dtype, np.zeros(1, np.int64), {}, "")
    assert plan.rows == rows


def test_reading_goes_on_while_a_batch_is_encoded():
    events = []

    def read(batch):
        events.append(f"read {batch}")
        return batch

    ahead = folder_to_store._ahead(read, [0, 1, 2])
    assert next(ahead) == 0
    time.sleep(0.2)
    assert "read 1" in events  # though nobody has asked for it yet
    assert list(ahead) == [1, 2]


def test_an_unreadable_image_in_the_middle_ends_the_command_with_its_error(folder, tmp_path):
    def broken(indices):
        if int(indices[0]) > 8:
            raise DataError("a.png cannot be decoded")
        return folder.read(indices)

    with pytest.raises(DataError, match=r"a\.png"):
        fill(tmp_path / "broken.zarr", folder, read=broken)
    assert fill(tmp_path / "broken.zarr", folder) == N - CHUNK
