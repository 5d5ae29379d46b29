"""A folder or a Hub repository to a local folder; the Hub itself is replaced, nothing here touches a network."""

import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from domains.imagenet import hub as hub_module
from domains.imagenet.hub import PATIENCE, WeightsError, local_folder

REPOSITORY = "someone/some-net"
FILES = ("config.json", "model.safetensors|pytorch_model.bin")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--someone--some-net"


def fill(cache, *names, commit="0" * 40):
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


@pytest.fixture
def hub(monkeypatch):
    """The Hub's answer, and what was downloaded; `names` as an exception or a function is raised or called."""
    state = SimpleNamespace(names=[], downloaded=None)
    cached_only = hub_module.snapshot_download

    def model_info(self, repository, *, revision=None, timeout=None):
        if isinstance(state.names, Exception):
            raise state.names
        names = state.names() if callable(state.names) else state.names
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(repository, **options):
        if options.get("local_files_only"):
            return cached_only(repository, **options)
        state.downloaded = (repository, options)
        return "/downloaded"

    monkeypatch.setattr(hub_module.HfApi, "model_info", model_info)
    monkeypatch.setattr(hub_module, "snapshot_download", snapshot_download)
    return state


def test_a_folder_is_taken_as_it_is(tmp_path, hub):
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    hub.names = AssertionError("no network for a folder")
    assert local_folder(tmp_path, files=FILES) == tmp_path
    assert local_folder(str(tmp_path), files=["*.bin"]) == tmp_path


def test_an_incomplete_folder_names_what_is_missing_and_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=rf"vae.path={tmp_path} has no file model.safetensors or pytorch_model.bin; "
                                           r"it holds config.json"):  # fmt: skip
        local_folder(tmp_path, files=FILES, setting="vae.path")


@pytest.mark.parametrize("given", ["/no/such/folder", "folder", "a/b/c", "~nobody/x"])
def test_what_is_no_folder_and_no_repository_is_refused_without_asking(given, hub):
    hub.names = AssertionError("must not ask")
    with pytest.raises(WeightsError, match="no existing folder, nor the owner/name"):
        local_folder(given, files=FILES)


def test_what_the_cache_holds_needs_no_network(cache, hub):
    snapshot = fill(cache, "config.json", "model.safetensors")
    hub.names = AssertionError("must not ask")
    assert local_folder(REPOSITORY, files=FILES) == snapshot


def test_an_incomplete_cache_is_completed(cache, hub):
    fill(cache, "config.json")
    hub.names = ["config.json", "pytorch_model.bin", "model.safetensors", "model.ckpt"]
    assert str(local_folder(REPOSITORY, files=FILES, revision="abc")) == "/downloaded"
    repository, options = hub.downloaded
    assert repository == REPOSITORY
    assert options == {"revision": "abc", "allow_patterns": ["config.json", "model.safetensors"]}


def test_the_second_alternative_where_the_first_is_absent(cache, hub):
    hub.names = ["config.json", "pytorch_model.bin"]
    local_folder(REPOSITORY, files=FILES)
    assert hub.downloaded[1]["allow_patterns"] == ["config.json", "pytorch_model.bin"]


def test_a_repository_without_the_file_downloads_nothing(cache, hub):
    hub.names = ["config.json", "weights.ckpt"]
    with pytest.raises(WeightsError, match=r"has no file .* or pytorch_model.bin; it holds config.json, "):
        local_folder(REPOSITORY, files=FILES)
    assert hub.downloaded is None


def test_no_network_names_the_repository_and_the_command(cache, hub):
    hub.names = OSError("Name or service not known")
    with pytest.raises(WeightsError) as caught:
        local_folder(REPOSITORY, files=FILES, revision="abc", setting="vae.path")
    assert "vae.path=someone/some-net" in str(caught.value)
    assert "Name or service not known" in str(caught.value)
    command = "hf download someone/some-net config.json model.safetensors --revision abc --local-dir FOLDER"
    assert command in str(caught.value)
    with pytest.raises(WeightsError, match=r"--include '\*.msgpack'"):
        local_folder(REPOSITORY, files=["*.msgpack"])


def test_a_silent_network_is_given_up(cache, hub, monkeypatch):
    monkeypatch.setattr(hub_module, "PATIENCE", 0.2)
    assert PATIENCE < 5
    hub.names = lambda: time.sleep(3)
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"no answer within 0\.2 s"):
        local_folder(REPOSITORY, files=FILES)
    assert time.monotonic() - began < 1.5


def test_offline_mode_is_named(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        local_folder(REPOSITORY, files=FILES)
