"""The authors' tree of .pt files: the layouts that are read, what is refused, and the store made of it."""

import numpy as np
import pytest
import torch

from domains.imagenet import import_latents
from domains.imagenet.data.image_data import DataError
from domains.imagenet.data.latent_store import LatentStore
from domains.imagenet.data.pt_tree import PtTree, missing_pt_tree, read_pair
from domains.imagenet.import_latents import ImportLatentsConfig
from drifting.training.errors import ConfigError

H = 8
C = 4


def pair(seed: int) -> list[torch.Tensor]:
    """An image's latent and its mirror image's, [c, h, w], numbers that half precision holds."""
    drawn = torch.randn(2, C, H, H, generator=torch.Generator().manual_seed(seed)).half().float()
    return list(drawn)


def hwc(latents):
    return [latent.permute(1, 2, 0).contiguous() for latent in latents]


LAYOUTS = {
    "dict of [h, w, c]": lambda p: dict(zip(("moments", "moments_flip"), hwc(p), strict=True)),
    "dict of [c, h, w] with a label": lambda p: {"moments": p[0], "moments_flip": p[1], "label": 3},
    "tuple": lambda p: tuple(hwc(p)),
    "list of half precision": lambda p: [one.half() for one in p],
    "tuple of arrays": lambda p: tuple(one.numpy() for one in hwc(p)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_accepted_layout_gives_the_same_pair(layout, tmp_path):
    torch.save(LAYOUTS[layout](pair(0)), tmp_path / "a.pt")
    assert torch.equal(read_pair(tmp_path / "a.pt"), torch.stack(pair(0)))


class Surprise:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(H, H, C), "must hold a dict with moments and moments_flip.*; it holds Tensor"),
        ({"mean": torch.zeros(H, H, C)}, "it holds mean"),
        ((torch.zeros(H, H, C),), "it holds tuple"),
        ((torch.zeros(H, H, C), torch.zeros(H, H, C - 1)), "one shape"),
        ((torch.zeros(H, H), torch.zeros(H, H)), r"one of them is \(8, 8\) torch.float32"),
        ((torch.zeros(H, H, C, dtype=torch.int64),) * 2, "int64"),
        ((torch.zeros(4, 8, 4), torch.zeros(4, 8, 4)), r"which side of \(4, 8, 4\) is the channels"),
        (Surprise(), "cannot be read: UnpicklingError"),
    ],
)
def test_other_contents_are_refused_by_file_name(content, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "odd.pt")
    with pytest.raises(DataError, match=rf"odd\.pt.*{match}"):
        read_pair(tmp_path / "odd.pt")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    torch.save(tuple(pair(0)), tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.pt cannot be read"):
        read_pair(tmp_path / "cut.pt")


def write_tree(root, n=7):
    for index in range(n):
        folder = root / ("n02" if index < 4 else "n01")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(LAYOUTS["dict of [h, w, c]"](pair(index)), folder / f"{index}.pt")
    return root


def test_a_tree_becomes_a_store_of_its_very_latents(tmp_path, capsys):
    root, out = write_tree(tmp_path / "tree"), tmp_path / "out.zarr"
    config = ImportLatentsConfig(tree=str(root), out=str(out), batch=2, chunk=3, workers=2, classes=2)
    import_latents.main.__wrapped__(config)
    assert "7 images imported now" in capsys.readouterr().out
    store = LatentStore(out)
    assert store.classes == ("n01", "n02")
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    order = [4, 5, 6, 0, 1, 2, 3]  # n01 comes first
    assert torch.equal(store.read(torch.arange(7)), torch.stack([pair(index)[0] for index in order]))
    assert store.scale == 0.18215
    drawn = store.read(torch.full((40,), 2), torch.Generator().manual_seed(0))
    assert {one.numpy().tobytes() for one in drawn} == {one.numpy().tobytes() for one in pair(6)}
    import_latents.main.__wrapped__(config)
    assert "0 images imported now" in capsys.readouterr().out


def test_a_latent_of_another_shape_is_refused_by_name(tmp_path):
    root = write_tree(tmp_path / "tree")
    torch.save((torch.zeros(C, 16, 16), torch.zeros(C, 16, 16)), root / "n02" / "1.pt")
    tree = PtTree(root)
    with pytest.raises(DataError, match=r"n02/1\.pt holds latents of \(4, 16, 16\), .*n01/4\.pt of \(4, 8, 8\)"):
        tree.read(torch.arange(7))


def test_numbers_beyond_half_precision_are_refused(tmp_path):
    root = write_tree(tmp_path / "tree", n=1)
    torch.save((torch.full((C, H, H), np.inf), torch.zeros(C, H, H)), root / "n02" / "0.pt")
    with pytest.raises(DataError, match="half precision"):
        import_latents.main.__wrapped__(ImportLatentsConfig(tree=str(root), out=str(tmp_path / "out.zarr")))


def test_no_tree_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="tree: no class folders"):
        import_latents.main.__wrapped__(ImportLatentsConfig(tree=str(tmp_path / "no"), out=str(tmp_path / "out.zarr")))
    assert len(missing_pt_tree(str(tmp_path), "tree")) == 1
    with pytest.raises(DataError, match="must have 5 class folders, it has 2"):
        PtTree(write_tree(tmp_path / "tree"), expected_classes=5)
