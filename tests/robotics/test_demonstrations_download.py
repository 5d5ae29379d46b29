"""Downloads from a real server in this process that cuts connections, changes its file, refuses, or has no ranges."""

import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pytest
import zarr
from task_files import task_of

from domains.robotics.demonstrations import download as module
from domains.robotics.demonstrations import human
from domains.robotics.demonstrations.config import DemosConfig
from domains.robotics.demonstrations.download import download
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.push_t_data import actions_digest
from domains.robotics.demonstrations.sources import load_demonstrations

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; sends at most `cut` bytes of it per answer; `status` other than 200 refuses."""

    content, tag, cut, status, ranges, lengths, stated = CONTENT, '"one"', None, 200, True, True, SHA256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []  # Range of every request
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        """What the Hub says of a large file."""
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("X-Linked-Etag", f'"{self.server.stated}"')
        self.send_header("ETag", f'"{self.server.stated}"')
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.tag)
        if server.lengths:
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        end = len(server.content) if server.cut is None else start + server.cut
        self.wfile.write(server.content[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.001)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, path, **options):
    return download(server.url, path, progress=False, **options)


def test_a_whole_file(server, tmp_path):
    path = fetch(server, tmp_path / "folder" / "data.zip", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_cut_connections_are_continued_where_they_were_cut(server, tmp_path):
    server.cut = 300_000
    assert fetch(server, tmp_path / "data.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path, monkeypatch):
    server.cut = 0
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])  # without a validator: not to be trusted
    with pytest.raises(DemonstrationError, match=r"data\.zip was cut after 0 of 1000003 bytes; call again"):
        fetch(server, tmp_path / "data.zip")
    server.cut, server.asked = 400_000, []
    monkeypatch.setattr(module, "TRIES", 0)  # give up at the first cut
    with pytest.raises(DemonstrationError, match=r"was cut after 400000 of 1000003 bytes"):
        fetch(server, tmp_path / "data.zip")
    server.cut = None
    assert fetch(server, tmp_path / "data.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=400000-"]


def test_another_version_of_the_file_is_not_appended(server, tmp_path, monkeypatch):
    server.cut = 400_000
    monkeypatch.setattr(module, "TRIES", 0)
    with pytest.raises(DemonstrationError, match="was cut"):
        fetch(server, tmp_path / "data.zip")
    server.content, server.tag, server.cut = CONTENT[::-1], '"two"', None
    assert fetch(server, tmp_path / "data.zip").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:777])
    (tmp_path / "data.zip.part.json").write_text('"\\"one\\""')
    assert fetch(server, tmp_path / "data.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == ["bytes=777-"]


def test_what_is_complete_or_too_long_is_noticed(server, tmp_path):
    for left, asked in ((CONTENT, ["bytes=1000003-"]), (CONTENT + b"more", ["bytes=1000007-", None])):
        server.asked = []
        (tmp_path / "data.zip.part").write_bytes(left)
        (tmp_path / "data.zip.part.json").write_text('"\\"one\\""')
        assert fetch(server, tmp_path / "data.zip", sha256=SHA256).read_bytes() == CONTENT
        assert server.asked == asked


def test_a_file_without_a_stated_length(server, tmp_path):
    server.lengths = False
    assert fetch(server, tmp_path / "data.zip", sha256=SHA256).read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DemonstrationError, match=f"is another file: sha256 .*, expected {SHA256}. Do this."):
        fetch(server, tmp_path / "data.zip", sha256=SHA256, advice="Do this.")
    assert list(tmp_path.iterdir()) == []


def test_no_connection_and_refusals_say_what_to_do(server, tmp_path):
    server.status = 404
    with pytest.raises(DemonstrationError, match=r"data\.zip cannot be downloaded: the server answered 404 .* Do this"):
        fetch(server, tmp_path / "data.zip", advice="Do this")
    assert len(server.asked) == 1
    server.status, server.asked = 503, []
    with pytest.raises(DemonstrationError, match="the server answered 503"):
        fetch(server, tmp_path / "data.zip")
    assert len(server.asked) == module.TRIES
    server.shutdown()
    server.server_close()
    with pytest.raises(DemonstrationError, match=r"cannot be downloaded: no connection \(.*refused.*Do this"):
        fetch(server, tmp_path / "data.zip", advice="Do this")


def push_t_archive(folder, *, steps=30):
    """A small archive of PushT's layout, zarr v2."""
    rng = np.random.default_rng(0)
    root = zarr.open_group(folder / "pusht" / human.PUSH_T_FOLDER, mode="w", zarr_format=2)
    shapes = {"action": (2,), "state": (5,), "keypoint": (9, 2), "img": (6, 6, 3)}
    for key, shape in shapes.items():
        root.create_array(f"data/{key}", data=rng.uniform(10, 250, (steps, *shape)).astype(np.float32))
    root.create_array("meta/episode_ends", data=np.array([12, steps]))
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "pusht").rglob("*")):
            archive.write(path, path.relative_to(folder))
    return (folder / "made.zip").read_bytes(), actions_digest(folder / "pusht" / human.PUSH_T_FOLDER)


def test_the_archive_of_push_t_is_fetched_unpacked_and_compared_once(server, tmp_path, monkeypatch):
    server.content, digest = push_t_archive(tmp_path)
    server.cut = 2000
    cache = tmp_path / "cache"
    with pytest.raises(DemonstrationError, match="holds other actions than the published ones"):
        human.push_t_folder(cache, url=server.url, progress=False)
    assert not (cache / human.PUSH_T_FOLDER).exists()
    (cache / "pusht.zip").unlink()
    monkeypatch.setattr(human, "PUBLISHED_ACTIONS", digest)
    folder = human.push_t_folder(cache, url=server.url, progress=False)
    assert actions_digest(folder) == digest
    assert not (cache / "pusht.zip").exists()
    asked = len(server.asked)
    assert human.push_t_folder(cache, url=server.url, progress=False) == folder
    assert len(server.asked) == asked


def test_the_archive_of_push_t_may_be_given(tmp_path, monkeypatch):
    content, digest = push_t_archive(tmp_path)
    monkeypatch.setattr(human, "PUBLISHED_ACTIONS", digest)
    archive = tmp_path / "pusht.zip"
    archive.write_bytes(content)
    demos = DemosConfig(source="human", path=str(archive), cache=str(tmp_path / "cache"))
    store = load_demonstrations(task_of("push_t"), demos, horizon=8)
    assert store.episode_ends.tolist() == [12, 30]
    assert archive.read_bytes() == content
    with monkeypatch.context() as patch:
        patch.delattr(human, "unpack")  # once is enough
        assert load_demonstrations(task_of("push_t"), demos, horizon=8).path == store.path
    (tmp_path / "another").mkdir()
    archive.write_bytes(push_t_archive(tmp_path / "another", steps=31)[0])
    for _ in range(2):
        with pytest.raises(DemonstrationError, match=r"pusht\.zip holds other actions than the published ones"):
            load_demonstrations(task_of("push_t"), demos)
    with pytest.raises(DemonstrationError, match=r"pusht\.zip is of no known kind"):
        load_demonstrations(task_of("lift"), demos)


def test_damaged_archives_are_refused(tmp_path):
    content, _ = push_t_archive(tmp_path)
    broken = tmp_path / "broken.zip"
    for damaged in (content[:-100], content[: len(content) // 2], b"no zip"):
        broken.write_bytes(damaged)
        with pytest.raises(DemonstrationError, match=r"broken\.zip is no whole zip archive"):
            human.unpack(broken, tmp_path / human.PUSH_T_FOLDER)
    at = content.index(b"PK", 100) - 20  # within the first file's bytes
    broken.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    with pytest.raises(DemonstrationError, match=r"broken\.zip is (damaged|no whole zip archive)"):
        human.unpack(broken, tmp_path / human.PUSH_T_FOLDER)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(DemonstrationError, match=r"broken\.zip has no folder pusht_cchi_v7_replay\.zarr"):
        human.unpack(broken, tmp_path / human.PUSH_T_FOLDER)
    assert not (tmp_path / human.PUSH_T_FOLDER).exists()


def test_robomimic_s_file_comes_from_the_hub_and_is_checked(server, tmp_path, monkeypatch):
    """The Hub's own client against this server; the checksum that the Hub states is compared."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    endpoint = server.url.rpartition("/")[0]
    path = human.robomimic_file("lift", tmp_path / "hub", endpoint=endpoint)
    assert path.name == "low_dim_v15.hdf5"
    assert path.read_bytes() == CONTENT
    asked = len(server.asked)
    assert human.robomimic_file("lift", tmp_path / "hub", endpoint=endpoint) == path
    assert len(server.asked) == asked
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DemonstrationError, match=f"arrived damaged: sha256 .*, expected {SHA256}"):
        human.robomimic_file("lift", tmp_path / "other", endpoint=endpoint)


def test_offline_the_hub_s_file_says_how_to_get_it(tmp_path, server):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    server.shutdown()
    server.server_close()
    with pytest.raises(
        DemonstrationError, match=r"can/ph/low_dim_v15\.hdf5 of .* cannot be had.*demos\.path=FILE.*hf down"
    ):
        human.robomimic_file("can", tmp_path, endpoint=server.url.rpartition("/")[0])
