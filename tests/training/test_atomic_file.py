"""Files that are replaced whole."""

from drifting.training.atomic_file import replacing


def test_processes_that_write_at_once_do_not_get_in_each_others_way(tmp_path):
    path = tmp_path / "judge"
    with replacing(path, several=True) as last, replacing(path, several=True) as first:
        first.write(b"1")
        last.write(b"22")
    assert path.read_bytes() == b"22"
    assert list(tmp_path.iterdir()) == [path]
