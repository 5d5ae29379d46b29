"""From images to figures: one pass, names, references in a file, neighbours, the sweep."""

import numpy as np
import pytest
import torch
from PIL import Image

from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.metrics.feature_network import Features, figure_name
from domains.imagenet.metrics.feature_set import gather
from domains.imagenet.metrics.guidance_sweep import save_sweep, sweep_table
from domains.imagenet.metrics.image_batches import in_batches, some_of, to_8_bits
from domains.imagenet.metrics.image_metrics import compare
from domains.imagenet.metrics.neighbours import nearest_images, save_neighbours
from domains.imagenet.metrics.reference import Reference, missing_reference, read_reference, write_reference
from drifting.training.errors import ConfigError


class Flat:
    """Pixels as features; some of them as spatial features and as logits."""

    width = 3 * 4 * 4

    def __init__(self, name: str = "flat") -> None:
        self.name = name

    def features(self, images: torch.Tensor) -> Features:
        flat = images.flatten(1).float() / 255
        return Features(flat, flat[:, :5], 5 * flat[:, :7])


def pictures(count: int = 120, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def adm_arrays(images: torch.Tensor) -> dict[str, np.ndarray]:
    found = Flat().features(images)
    pooled, spatial = found.pooled.double().numpy(), found.spatial.double().numpy()
    return {
        "mu": pooled.mean(0),
        "sigma": np.cov(pooled.T),
        "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial.T),
        "arr_0": images.permute(0, 2, 3, 1).contiguous().numpy(),
    }


def test_only_inception_measures_an_fid():
    names = ("FD", "sFD", "IS", "KD", "precision", "recall")
    assert [figure_name(name, "inception") for name in names] == ["FID", "sFID", "IS", "KID", "precision", "recall"]
    assert [figure_name(name, "judge") for name in names[:4]] == ["FD(judge)", "sFD(judge)", "IS(judge)", "KD(judge)"]
    with pytest.raises(ValueError, match=r"figure must be one of FD, .*, got 'FID'"):
        figure_name("FID", "judge")


def test_a_pass_does_not_depend_on_its_batches_and_keeps_what_is_asked_for():
    images = pictures()
    keep = torch.arange(120) % 7 == 3
    whole, parts = (gather(images.split(size), Flat(), keep=keep) for size in (120, 17))
    torch.testing.assert_close(parts.moments.scatter, whole.moments.scatter)
    torch.testing.assert_close(parts.spatial.mean, whole.spatial.mean)
    assert torch.equal(parts.pooled, Flat().features(images[keep]).pooled)
    assert parts.logits.shape == (120, 7)
    assert gather([images], Flat(), with_logits=False).logits is None
    assert len(whole.thinned(5).pooled) == 5
    assert whole.thinned(5).moments.count == 120
    with pytest.raises(ValueError, match="at least one image, got none"):
        gather([], Flat())


def test_real_against_itself_is_zero_and_other_images_are_not():
    real = gather(pictures().split(50), Flat())
    figures = compare(real, Reference.of(real))
    assert list(figures) == ["FD(flat)", "sFD(flat)", "IS(flat)", "KD(flat)", "precision(flat)", "recall(flat)"]
    assert figures["FD(flat)"] == pytest.approx(0, abs=1e-9)
    assert figures["sFD(flat)"] == pytest.approx(0, abs=1e-9)
    assert figures["precision(flat)"] == figures["recall(flat)"] == 1
    dark = gather([pictures(seed=1) // 4], Flat())
    other = compare(dark, Reference.of(real))
    assert other["FD(flat)"] > 1
    assert other["KD(flat)"] > 10 * abs(figures["KD(flat)"])
    assert other["precision(flat)"] < 0.5


def test_what_a_reference_lacks_is_left_out():
    real = gather([pictures()], Flat("inception"))
    figures = compare(real, Reference(real.moments.gaussian()))
    assert list(figures) == ["FID", "IS"]


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_statistics_of_both_names_are_read(tmp_path, keys):
    arrays = adm_arrays(pictures())
    np.savez(tmp_path / "stats.npz", **{keys[0]: arrays["mu"], keys[1]: arrays["sigma"]})
    reference = read_reference(tmp_path / "stats.npz", Flat())
    assert reference.spatial is None
    assert reference.features is None
    assert reference.serves() == "FID, no sFID (no mu_s, sigma_s), no KID, precision and recall (no images)"
    assert compare(gather([pictures()], Flat()), reference)["FD(flat)"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adms_file_serves_every_figure(tmp_path, save):
    images = pictures()
    save(tmp_path / "adm.npz", **adm_arrays(images))
    reference = read_reference(tmp_path / "adm.npz", Flat(), batch=50)
    assert torch.equal(reference.features, Flat().features(images).pooled)
    assert reference.serves() == "FID, sFID, KID, precision and recall against 120 images"
    assert reference.serves("judge").startswith("FD(judge), sFD(judge), KD(judge), precision and recall against")
    assert compare(gather([images], Flat()), reference)["sFD(flat)"] == pytest.approx(0, abs=1e-6)


def test_images_for_precision_may_lie_in_another_file(tmp_path):
    arrays = adm_arrays(pictures())
    np.savez(tmp_path / "stats.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    np.savez(tmp_path / "images.npz", arr_0=arrays["arr_0"][:30])
    assert len(read_reference(tmp_path / "stats.npz", Flat(), images=tmp_path / "images.npz").features) == 30


def test_a_reference_that_was_made_here_is_read_again_by_the_same_network_alone(tmp_path):
    real = gather([pictures()], Flat("inception"))
    write_reference(tmp_path / "own.npz", real.thinned(50), resize="tf1")
    network = Flat("inception")
    network.resize = "tf1"
    reference = read_reference(tmp_path / "own.npz", network)
    torch.testing.assert_close(reference.pooled.covariance, real.moments.gaussian().covariance)
    assert len(reference.features) == 50
    network.resize = "half_pixel"
    with pytest.raises(ConfigError, match="made with resize 'tf1', this evaluation has 'half_pixel'"):
        read_reference(tmp_path / "own.npz", network)
    with pytest.raises(ConfigError, match="made with network 'inception', this evaluation has 'flat'"):
        read_reference(tmp_path / "own.npz", Flat())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": np.eye(3)}, r"mu, sigma: mean and covariance must be \[d\] and \[d, d\]"),
        (
            {"mu": np.zeros(5), "sigma": np.eye(5)},
            "statistics of 5 features, flat has 48: it was made with another network",
        ),
        ({"mu": None}, "expected mu and sigma, or ref_mu and ref_sigma"),
        ({"mu": np.array([{"a": 1}], dtype=object)}, "mu cannot be read: .*allow_pickle"),
        ({"arr_0": np.zeros((4, 3, 4, 4), np.uint8)}, r"arr_0 must be uint8 \[n, H, W, 3\]"),
        ({"arr_0": np.zeros((4, 4, 4, 3))}, r"arr_0 must be uint8 .* got float64"),
        ({"mu": np.full(48, np.nan)}, "mean must be finite"),
    ],
)
def test_a_wrong_reference_is_refused(tmp_path, change, message):
    arrays = {key: value for key, value in (adm_arrays(pictures()) | change).items() if value is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_reference(tmp_path / "wrong.npz", Flat())


def test_a_file_that_is_missing_or_no_npz_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(ConfigError, match=f"{name} is not a readable npz file"):
            read_reference(tmp_path / name, Flat())
    assert missing_reference("", "eval.reference", "make it") == []
    assert missing_reference(str(tmp_path / "text.npz"), "eval.reference", "make it") == []
    (absent,) = missing_reference(str(tmp_path / "absent.npz"), "eval.reference", "make it")
    assert absent.setting == "eval.reference"
    assert absent.command == "make it"


def test_neighbours_find_the_planted_copies_in_whatever_batches(tmp_path):
    train = LabelledImages(pictures(90, seed=1), torch.zeros(90, dtype=torch.long))
    samples = train.images[[70, 3]]
    found = [nearest_images(samples, in_batches(train, size), Flat(), 4) for size in (90, 7)]
    for neighbours in found:
        assert neighbours.index[:, 0].tolist() == [70, 3]
        torch.testing.assert_close(neighbours.similarity[:, 0], torch.ones(2))
        assert (neighbours.similarity.diff(dim=1) <= 0).all()
    assert torch.equal(found[0].index, found[1].index)
    save_neighbours(tmp_path / "sheet.png", samples, found[0], train)
    assert Image.open(tmp_path / "sheet.png").width > Image.open(tmp_path / "sheet.png").height
    with pytest.raises(ValueError, match="count must be at most the 90 images, got 91"):
        nearest_images(samples, in_batches(train, 50), Flat(), 91)


def test_the_sweep_is_told_and_plotted(tmp_path):
    sweep = {2.0: {"FID": 3.0, "IS": 300.0}, 1.0: {"FID": 1.5, "IS": 250.0}}
    lines = sweep_table({"": sweep}, {"real": {"FID": 0.0, "IS": 400.0}}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["alpha", "1", "1.5000*", "250.0000"],
        ["alpha", "2", "3.0000", "300.0000"],
        ["real", "0.0000", "400.0000"],
    ]
    worse = {alpha: figures | {"FID": 9.0} for alpha, figures in sweep.items()}
    several = sweep_table({"L/2": sweep, "B/2": worse}).splitlines()
    assert [line.split()[:4] for line in several[1:]] == [
        ["L/2,", "alpha", "1", "1.5000*"],
        ["L/2,", "alpha", "2", "3.0000"],
        ["B/2,", "alpha", "1", "9.0000"],
        ["B/2,", "alpha", "2", "9.0000"],
    ]
    save_sweep(tmp_path / "sweep.png", {"L/2": sweep, "B/2": sweep}, distance="FID", score="IS")
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000


def test_samples_become_8_bits_by_the_rounding_that_is_asked_for():
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0])
    assert to_8_bits(levels, "nearest").tolist() == [0, 0, 128, 255, 255, 255]
    assert to_8_bits(levels, "truncate").tolist() == [0, 0, 127, 254, 255, 255]
    stored = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8_bits(stored.float() / 127.5 - 1, "nearest"), stored)
    with pytest.raises(ValueError, match="rounding must be nearest or truncate, got 'up'"):
        to_8_bits(levels, "up")


def test_some_of_many_are_the_same_ones_every_time():
    chosen = some_of(1000, 50)
    assert torch.equal(chosen, some_of(1000, 50))
    assert len(chosen.unique()) == 50
    assert (chosen.diff() > 0).all()
    assert torch.equal(some_of(20, 50), torch.arange(20))
