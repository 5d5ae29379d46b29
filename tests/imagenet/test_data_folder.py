"""Image folders: the order of classes, what is refused, what is damaged."""

import numpy as np
import pytest
import torch
from image_files import truncate, write_images
from PIL import Image, ImageFile

from domains.imagenet.data import damaged_images, whole_images
from domains.imagenet.data.damaged_images import find_damaged, refuse_damaged
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.image_folder import ImageFolder, missing_image_folder
from domains.imagenet.data.section import DataSection, load_images, load_training_data, missing_data
from domains.imagenet.data.whole_images import check_decodable
from drifting.training.ranks import Ranks


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path):
    names = [f"n{number:02}" for number in (7, 2, 10, 1, 9, 3, 12, 5, 4, 11, 8, 6)]
    write_images(tmp_path, {name: 1 + number % 3 for number, name in enumerate(names)})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    data = ImageFolder(tmp_path, size=16, expected_classes=12)
    assert data.classes == tuple(sorted(names))
    assert [file.parent.name for file in data.files] == [data.classes[label] for label in data.labels]
    counts = [1 + names.index(name) % 3 for name in data.classes]
    assert data.labels.tolist() == [label for label, count in enumerate(counts) for _ in range(count)]
    images = data.read(torch.tensor([5, 0, 5]))
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_another_number_of_classes_is_refused(tmp_path):
    write_images(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(DataError, match="1000 class folders, it has 2: a, b"):
        ImageFolder(tmp_path, size=16, expected_classes=1000)


def test_a_flat_validation_folder_is_refused_with_the_fix(tmp_path):
    write_images(tmp_path, {".": 3})
    with pytest.raises(DataError, match=r"3 files outside of class folders .* sort its files into ROOT/<wnid>/"):
        ImageFolder(tmp_path, size=16)
    [missing] = missing_image_folder(str(tmp_path), "folder")
    assert missing.setting == "folder"
    assert "<wnid>" in missing.command


def test_a_class_without_images_and_no_folder_are_refused(tmp_path):
    write_images(tmp_path, {"a": 1})
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"1 class folders without files .*: b\. Fill or remove"):
        ImageFolder(tmp_path, size=16)
    with pytest.raises(DataError, match="nothing is no folder"):
        ImageFolder(tmp_path / "nothing", size=16)
    assert missing_image_folder(str(tmp_path), "folder") == []
    assert len(missing_image_folder("", "data.path")) == 1


def test_every_colour_mode_becomes_rgb_and_sixteen_bits_are_refused(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    grey = Image.fromarray(np.full((20, 20), 90, np.uint8))
    grey.save(folder / "0.png")
    Image.fromarray(np.full((20, 20, 3), (200, 30, 60), np.uint8)).convert("CMYK").save(folder / "1.jpg", quality=95)
    grey.convert("P").save(folder / "2.png")
    grey.convert("RGBA").save(folder / "3.png")
    images = ImageFolder(tmp_path, size=16).read(torch.arange(4)).float()
    for index in (0, 2, 3):
        assert (images[index] == 90).all()
    assert (images[1].mean((1, 2)) - torch.tensor([200.0, 30, 60])).abs().max() < 6
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(folder / "4.png")
    with pytest.raises(DataError, match=r"4\.png has pixels of mode I;16"):
        ImageFolder(tmp_path, size=16).read(torch.tensor([4]))


def test_truncated_and_corrupt_images_are_listed_and_only_those(tmp_path):
    write_images(tmp_path, {"a": 4, "b": 3})
    truncate(tmp_path / "a" / "001.png")
    (tmp_path / "b" / "002.png").write_bytes(b"no picture at all")
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(tmp_path / "b" / "whole.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "b" / "cut.jpg")
    truncate(tmp_path / "b" / "cut.jpg")
    folder = ImageFolder(tmp_path, size=16)
    for threads in (1, 3):
        damaged = find_damaged(folder.files, threads=threads)
        assert [each.file.name for each in damaged] == ["001.png", "002.png", "cut.jpg"]
    assert "truncated" in damaged[2].reason
    with pytest.raises(DataError, match=r"001\.png cannot be decoded"):
        folder.read(torch.arange(len(folder)))
    report = tmp_path / "damaged.txt"
    with pytest.raises(DataError, match=r"3 of 9 images .* skip_damaged=true"):
        refuse_damaged(folder, report, skip=False)
    assert len(report.read_text().splitlines()) == 3
    names = refuse_damaged(folder, report, skip=True)
    left = folder.without(names)
    assert len(left) == 6
    assert find_damaged(left.files) == []
    assert left.fingerprint != folder.fingerprint
    with pytest.raises(DataError, match="no image is left of b"):
        folder.without([file.relative_to(tmp_path).as_posix() for file in folder.files if file.parent.name == "b"])


def test_accepting_truncated_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES"):
        find_damaged([])


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that a check has decoded."""
    names = []
    decode = damaged_images.decode
    monkeypatch.setattr(damaged_images, "decode", lambda file: (names.append(file.name), decode(file))[1])
    return names


def test_a_folder_is_decoded_once_before_a_run_and_then_only_what_is_new(tmp_path, decoded):
    write_images(tmp_path / "images", {"a": 3})
    runs = tmp_path / "runs"
    for crop in ("centre", "random"):  # another run of the same images
        check_decodable({"data.path": ImageFolder(tmp_path / "images", size=16, crop=crop)}, runs)
        assert decoded == ["000.png", "001.png", "002.png"]
    write_images(tmp_path / "images", {"b": 1})
    decoded.clear()
    check_decodable({"data.path": ImageFolder(tmp_path / "images", size=16), "data.test": None}, runs)
    assert decoded == ["000.png"]
    other = write_images(tmp_path / "copy", {"a": 3})  # the same names and lengths, perhaps badly copied
    check_decodable({"data.path": ImageFolder(other, size=16)}, runs)
    assert len(decoded) == 4


def test_damaged_images_are_found_before_a_run_and_may_be_left_out(tmp_path, decoded):
    root, runs = write_images(tmp_path / "images", {"a": 4, "b": 3}), tmp_path / "runs"
    truncate(root / "a" / "001.png")
    truncate(root / "b" / "002.png")
    section = DataSection(kind="folder", path=str(root), size=16)
    with pytest.raises(DataError, match=r"^data\.path: 2 of 7 images .*a/001\.png .*data\.leave_out=") as refused:
        check_decodable({"data.path": load_training_data(section)}, runs)
    listed = str(refused.value).rpartition("data.leave_out=")[2]
    with pytest.raises(DataError, match=r"data\.test: 2 of 7.*Replace or delete them$"):
        check_decodable({"data.test": load_training_data(section)}, runs)
    section.leave_out = listed
    left = load_training_data(section)
    assert left.names == [f"a/00{k}.png" for k in (0, 2, 3)] + ["b/000.png", "b/001.png"]
    assert load_images(section, "train").names == left.names
    decoded.clear()
    check_decodable({"data.path": left}, runs)
    assert decoded == []
    truncate(root / "a" / "003.png")
    with pytest.raises(DataError, match="1 of 5 images"):
        check_decodable({"data.path": load_training_data(section)}, runs)
    assert len(load_training_data(section)) == 4  # the list keeps those of before
    section.leave_out = str(tmp_path / "no.txt")
    assert [missing.setting for missing in missing_data(section)] == ["data.leave_out"]


def test_ranks_share_the_check_and_all_know_what_one_finds(tmp_path, decoded, monkeypatch):
    root, runs = write_images(tmp_path / "images", {"a": 5}), tmp_path / "runs"
    found = [["a/002.png", "a/002.png cannot be decoded"]]
    second = Ranks(rank=1, count=2)
    monkeypatch.setattr(whole_images.Ranks, "connect", lambda: second)
    monkeypatch.setattr(whole_images.Ranks, "exchange", lambda self, message: [found, message])
    with pytest.raises(DataError, match=r"1 of 5 images .*a/002\.png cannot be decoded") as refused:
        check_decodable({"data.path": ImageFolder(root, size=16)}, runs)
    assert refused.value.agreed
    assert decoded == ["001.png", "003.png"]
    assert not runs.exists()  # which rank 0 writes


def test_a_generator_flips_half_of_the_images(tmp_path):
    write_images(tmp_path, {"a": 2})
    data = ImageFolder(tmp_path, size=16)
    plain = data.read(torch.tensor([1]))[0]
    drawn = data.read(torch.ones(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    flipped = (drawn == plain.flip(-1)).flatten(1).all(1)
    assert ((drawn == plain).flatten(1).all(1) ^ flipped).all()
    assert 70 < int(flipped.sum()) < 130
    still = ImageFolder(tmp_path, size=16, flip=False).read(torch.ones(9, dtype=torch.int64), torch.Generator())
    assert (still == plain).all()


def test_random_crops_follow_the_generator_and_not_the_threads(tmp_path):
    write_images(tmp_path, {"a": 5})
    indices = torch.tensor([4, 0, 4, 2])
    one, many = (ImageFolder(tmp_path, size=16, crop="random", threads=threads) for threads in (1, 4))
    first = one.read(indices, torch.Generator().manual_seed(3))
    assert torch.equal(first, many.read(indices, torch.Generator().manual_seed(3)))
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, one.read(indices, torch.Generator().manual_seed(4)))
    centre = ImageFolder(tmp_path, size=16)
    assert torch.equal(one.read(indices), centre.read(indices))  # without one nothing is random


def test_the_fingerprint_knows_files_and_settings(tmp_path):
    write_images(tmp_path, {"a": 2})
    first = ImageFolder(tmp_path, size=16).fingerprint
    assert first == ImageFolder(tmp_path, size=16).fingerprint
    assert first != ImageFolder(tmp_path, size=8).fingerprint
    assert first != ImageFolder(tmp_path, size=16, crop="random").fingerprint
    write_images(tmp_path, {"a": 3})
    assert first != ImageFolder(tmp_path, size=16).fingerprint


def test_nonsense_arguments_are_refused(tmp_path):
    write_images(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="crop must be one of centre, random, got 'middle'"):
        ImageFolder(tmp_path, size=16, crop="middle")
    with pytest.raises(ValueError, match="size"):
        ImageFolder(tmp_path, size=0)
