"""Trees of arrays in the msgpack files that flax writes, read and written without flax.

The format (flax.serialization): one msgpack map whose values are maps and leaves. A leaf array is an extension type 1,
itself the msgpack array [shape, dtype name, bytes in C order]; 2 is a complex number [real, imaginary], 3 a numpy
scalar packed like an array. An array above 2^30 bytes is a map {"__msgpack_chunked_array__": true, "shape": {"0": ..},
"chunks": {"0": flat piece, ..}}. bfloat16 goes by its name.

Only these are built; no code of the file is run. Memory: the tensors, and a few times the largest of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import torch
from torch import Tensor

from domains.imagenet.hub import WeightsError
from drifting.training.atomic_file import replacing

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
CHUNK_BYTES = 2**30
MAX_ENTRIES = 2**20  # of one map or list: a damaged length must not reserve memory
MAX_DIMENSIONS = 32

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128),
    )
}


def read_tree(path: Path) -> dict[str, Any]:
    """The nested dicts of a file: leaves are tensors on the CPU, numbers, strings, None or lists.

    Raises:
        WeightsError: no such file, a truncated or damaged one, or one that holds something else; names the file.
    """
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                object_pairs_hook=_node,
                ext_hook=_leaf,
                max_buffer_size=0,  # the format's own limit, 4 GiB a leaf
                max_array_len=MAX_ENTRIES,
                max_map_len=MAX_ENTRIES,
            )
            try:
                tree = unpacker.unpack()
            except msgpack.OutOfData as error:
                raise WeightsError(f"{path} is truncated after {path.stat().st_size} bytes. Copy it again") from error
            except (ValueError, msgpack.UnpackException) as error:
                reason = str(error) or type(error).__name__
                at = unpacker.tell()
                raise WeightsError(f"{path} is no msgpack file of flax, or damaged: {reason} (byte {at})") from error
            if (extra := path.stat().st_size - unpacker.tell()) > 0:
                raise WeightsError(f"{path} is damaged: {extra} bytes follow the end of its content")
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} must hold a tree of named arrays, got {_kind(tree)}")
    return tree


def flatten(tree: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """{"a/b/c": tensor} of a tree that holds tensors only; `path` is the file it came from, for messages.

    Raises:
        WeightsError: a leaf is no array; names it.
    """
    tensors: dict[str, Tensor] = {}
    rest: list[tuple[str, Any]] = list(reversed(tree.items()))
    while rest:
        name, value = rest.pop()
        if isinstance(value, Mapping):
            rest += [(f"{name}/{key}", below) for key, below in reversed(value.items())]
        elif isinstance(value, Tensor):
            tensors[name] = value
        else:
            raise WeightsError(f"{path}: {name} must be an array, got {_kind(value)}")
    return tensors


def write_tree(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write {"a/b/c": tensor} as the tree {"a": {"b": {"c": array}}}; the file is complete or not there.

    Raises:
        WeightsError: a name is both a leaf and a branch, or numpy has no such dtype.
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise WeightsError(f"{path}: {name} lies below an array")
        if leaf in node or tensor.dtype not in DTYPES.values():
            raise WeightsError(f"{path}: {name} is named twice, or its dtype {tensor.dtype} is unknown to flax")
        node[leaf] = tensor
    with replacing(path) as file:
        _write(file, tree, msgpack.Packer())


def _write(file: BinaryIO, value: Any, packer: msgpack.Packer) -> None:
    if isinstance(value, dict):
        file.write(packer.pack_map_header(len(value)))
        for key, below in value.items():
            file.write(packer.pack(key))
            _write(file, below, packer)
    elif isinstance(value, Tensor) and value.numel() * value.element_size() > CHUNK_BYTES:
        pieces = value.contiguous().view(-1).split(CHUNK_BYTES // value.element_size())
        _write(file, {CHUNKED: True, "shape": _indexed(value.shape), "chunks": _indexed(pieces)}, packer)
    elif isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        name = str(value.dtype).removeprefix("torch.")
        file.write(packer.pack_ext_type(ARRAY, packer.pack((tuple(value.shape), name, data))))
    else:
        file.write(packer.pack(value))


def _indexed(values: Sequence[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def _leaf(code: int, data: bytes) -> Any:
    if code in (ARRAY, SCALAR):
        return _array(data)
    if code == COMPLEX:
        parts = msgpack.unpackb(data, max_array_len=2)
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, float) for part in parts)):
            raise ValueError(f"a complex number must be two floats, got {_kind(parts)}")
        return complex(*parts)
    raise ValueError(f"unknown extension type {code}; flax writes {ARRAY}, {COMPLEX} and {SCALAR}")


def _array(data: bytes) -> Tensor:
    content = msgpack.unpackb(data, max_array_len=MAX_DIMENSIONS, strict_map_key=False)
    if not (isinstance(content, list) and len(content) == 3):
        raise ValueError(f"an array must be [shape, dtype, bytes], got {_kind(content)}")
    shape, name, buffer = content
    sizes = shape if isinstance(shape, list) else [-1]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"the shape of an array must be sizes >= 0, got {shape!r}")
    name = name.decode(errors="replace") if isinstance(name, bytes) else name
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"array dtype {name!r} is none of {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    expected = math.prod(sizes) * dtype.itemsize
    if not isinstance(buffer, bytes) or len(buffer) != expected:
        given = f"{len(buffer)} bytes" if isinstance(buffer, bytes) else _kind(buffer)
        raise ValueError(f"an array of shape {tuple(sizes)} and dtype {name} has {expected} bytes, got {given}")
    if not buffer:
        return torch.empty(sizes, dtype=dtype)
    return torch.frombuffer(bytearray(buffer), dtype=dtype).reshape(sizes)


def _node(pairs: list[tuple[str, Any]]) -> Any:
    node = dict(pairs)
    if len(node) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice in one map")
    return _joined(node) if CHUNKED in node else node


def _joined(node: dict[str, Any]) -> Tensor:
    shape, chunks = list(_in_order(node, "shape")), list(_in_order(node, "chunks"))
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"the shape of a chunked array must be sizes >= 0, got {shape}")
    if not chunks or not all(isinstance(chunk, Tensor) and chunk.ndim == 1 for chunk in chunks):
        raise ValueError("the chunks of an array must be flat arrays")
    if len({chunk.dtype for chunk in chunks}) > 1 or sum(len(chunk) for chunk in chunks) != math.prod(shape):
        given = ", ".join(f"{len(chunk)} {chunk.dtype}" for chunk in chunks)
        raise ValueError(f"the chunks of an array of shape {tuple(shape)} do not add up to it: {given}")
    return torch.cat(chunks).reshape(shape)


def _in_order(node: dict[str, Any], key: str) -> Iterator[Any]:
    values = node.get(key)
    if not isinstance(values, dict) or set(values) != {str(i) for i in range(len(values))}:
        raise ValueError(f"a chunked array needs {key!r} with the keys 0, 1, ..")
    return (values[str(i)] for i in range(len(values)))


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
