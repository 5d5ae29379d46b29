"""The msgpack files of flax, read and written without it.

Provenance of the bytes: flax.serialization.msgpack_serialize of flax 0.12.8 on the trees that the tests name; for
CHUNKED with MAX_CHUNK_SIZE = 8 bytes.
"""

import random

import msgpack
import pytest
import torch

from domains.imagenet import flax_msgpack
from domains.imagenet.flax_msgpack import ARRAY, flatten, read_tree, write_tree
from domains.imagenet.hub import WeightsError

ARRAYS = bytes.fromhex(
    "82a16181a177c71e0193920202a7666c6f61743332c4100000803f000000400000404000008040"
    "a162c71201939102a862666c6f61743136c404c03f00c0"
)
SCALARS = bytes.fromhex("82a173d8039390a7666c6f61743332c40400002040a17ac7130292cb3ff0000000000000cb4000000000000000")
CHUNKED = bytes.fromhex(
    "81a17783b95f5f6d73677061636b5f6368756e6b65645f61727261795f5fc3a5736861706582a13002a13103a66368756e6b7382"
    "a130c71501939104a7666c6f61743136c408003c004000420044a131c71101939102a7666c6f61743136c40400450046"
)
TREE = {"a/w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
MATRIX = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float16)


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes):
        path = tmp_path / "params.msgpack"
        path.write_bytes(content)
        return read_tree(path)

    return read_bytes


def array(shape, name, buffer) -> bytes:
    """A file with one array, or what pretends to be one."""
    return msgpack.packb({"w": msgpack.ExtType(ARRAY, msgpack.packb((shape, name, buffer)))})


def assert_same(given, expected):
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert given[name].dtype == value.dtype
        assert torch.equal(given[name], value), name


def test_bytes_of_flax_are_read(read, tmp_path):
    assert_same(flatten(read(ARRAYS), tmp_path), TREE)
    scalars = read(SCALARS)
    assert scalars["s"].shape == ()
    assert (float(scalars["s"]), scalars["z"]) == (2.5, 1 + 2j)
    assert_same(read(CHUNKED), {"w": MATRIX})


def test_the_same_bytes_are_written(tmp_path, monkeypatch):
    path = tmp_path / "w.msgpack"
    write_tree(path, TREE)
    assert path.read_bytes() == ARRAYS
    monkeypatch.setattr(flax_msgpack, "CHUNK_BYTES", 8)
    write_tree(path, {"w": MATRIX.T.contiguous().T})  # a view: C order in the file all the same
    assert path.read_bytes() == CHUNKED


@pytest.mark.parametrize("dtype", flax_msgpack.DTYPES.values(), ids=str)
def test_every_dtype_and_shape_returns(tmp_path, dtype):
    values = torch.tensor([0, 1, 1, 0, 1, 1]).to(dtype)
    tensors = {"flat": values, "nested/cube": values.reshape(1, 2, 3), "none": values[:0].reshape(0, 5)}
    tensors["scalar"] = values[1]
    write_tree(tmp_path / "x", tensors)
    assert_same(flatten(read_tree(tmp_path / "x"), tmp_path), tensors)


@pytest.mark.parametrize("content", [ARRAYS, SCALARS, CHUNKED])
def test_every_truncation_is_noticed(read, content):
    for length in range(len(content)):
        with pytest.raises(WeightsError, match=r"params\.msgpack is truncated after \d+ bytes"):
            read(content[:length])
    with pytest.raises(WeightsError, match=r"params\.msgpack is damaged: 2 bytes follow"):
        read(content + b"\x00\x00")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array([2, 2], "float32", bytes(12)), r"shape \(2, 2\) and dtype float32 has 16 bytes, got 12 bytes"),
        (array([2**40, 2**40], "float32", b""), r"has \d+ bytes, got 0 bytes"),
        (array([-1], "float32", bytes(4)), r"sizes >= 0, got \[-1\]"),
        (array([True], "float32", bytes(4)), r"sizes >= 0"),
        (array(2, "float32", bytes(8)), r"sizes >= 0, got 2"),
        (array([1] * 40, "float32", bytes(4)), r"40 exceeds max_array_len"),
        (array([1], "object", bytes(8)), r"dtype 'object' is none of .*float32"),
        (array([1], ["float32"], bytes(8)), r"dtype \['float32'\] is none of"),
        (array([1], "float32", [0, 0, 0, 0]), r"has 4 bytes, got a list"),
        (msgpack.packb({"w": msgpack.ExtType(ARRAY, msgpack.packb([1]))}), r"must be \[shape, dtype, bytes\]"),
        (msgpack.packb({"w": msgpack.ExtType(7, b"x")}), r"unknown extension type 7"),
        (msgpack.packb({"w": msgpack.ExtType(2, msgpack.packb(["a", "b"]))}), r"complex number must be two floats"),
        (b"\x82\xa1a\x01\xa1a\x02", r"'a' occurs twice"),
        (b"\x81\x01\x02", r"damaged"),  # a name that is a number
        (b"\xdd\xff\xff\xff\xff", r"max_array_len"),  # a list of 2^32 entries that are not there
        (b"\x91" * 2000 + b"\x00", r"damaged"),  # nested deeper than anything sensible
        (b"\xc1", r"damaged"),
        (msgpack.packb([1, 2]), r"tree of named arrays, got a list"),
        (CHUNKED.replace(b"\xa1\x30\xc7", b"\xa1\x33\xc7"), r"'chunks' with the keys 0, 1"),
        (CHUNKED.replace(b"\xa1\x30\x02", b"\xa1\x30\x03"), r"do not add up to it"),
    ],
)
def test_what_flax_never_writes_is_refused(read, content, message):
    with pytest.raises(WeightsError, match=rf"params\.msgpack .*{message}"):
        read(content)


def test_no_damage_escapes_as_another_error(read):
    draw = random.Random(0)
    for _ in range(500):
        content = bytearray(draw.choice([ARRAYS, SCALARS, CHUNKED]))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            tree = read(bytes(content))
        except WeightsError:
            continue
        assert isinstance(tree, dict)


def test_names_must_be_a_tree_of_arrays(tmp_path):
    with pytest.raises(WeightsError, match=r"a/step must be an array, got a int"):
        flatten({"a": {"step": 3}}, tmp_path)
    with pytest.raises(WeightsError, match=r"a/b lies below an array"):
        write_tree(tmp_path / "x", {"a": MATRIX, "a/b": MATRIX})
    with pytest.raises(WeightsError, match=r"cannot read .*nowhere"):
        read_tree(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
