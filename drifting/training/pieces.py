"""State that the ranks share, as parts that each of them writes and any other number of ranks puts together again.

A sharded tensor (DTensor, of fully_shard) is written shard by shard; of replicas the first writes. What is replicated
without being a DTensor (data parallel) is rank 0's, buffers included: they are what DistributedDataParallel broadcasts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# (number of the tensor in its tree, its offset in the whole tensor, shape of the whole tensor): primitives, for a file
Piece = tuple[int, tuple[int, ...], tuple[int, ...]]
KeyPath = tuple[Any, ...]


def map_tensors(tree: Any, change: Callable[[KeyPath, Tensor], Tensor], path: KeyPath = ()) -> Any:
    """`tree` of dicts, lists and tuples with change(path, tensor) in place of each tensor, in order."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, Mapping):
        changed: Any = copy(tree)  # of the same class, with the version numbers that a module's state_dict carries
        for key, value in tree.items():
            changed[key] = map_tensors(value, change, (*path, key))
        return changed
    if type(tree) in (list, tuple):
        return type(tree)(map_tensors(value, change, (*path, index)) for index, value in enumerate(tree))
    return tree


def tensors(tree: Any) -> dict[KeyPath, Tensor]:
    """Every tensor of `tree` by its path, in the order of `map_tensors`."""
    found: dict[KeyPath, Tensor] = {}
    map_tensors(tree, lambda path, tensor: found.setdefault(path, tensor))
    return found


def own_pieces(tree: Any, rank: int) -> tuple[Any, list[Piece]]:
    """What `rank` writes of a shared state: the tree, its tensors local and empty where another rank writes; the list.

    Raises ValueError for a tensor that is a sum over ranks not yet taken.
    """
    pieces: list[Piece] = []
    nothing: dict[torch.dtype, Tensor] = {}  # one for all: each would take up a record of its own in the file
    numbers = {path: number for number, path in enumerate(tensors(tree))}

    def part(path: KeyPath, tensor: Tensor) -> Tensor:
        offset = _own_offset(path, tensor, rank)
        if offset is None:
            return nothing.setdefault(tensor.dtype, torch.empty(0, dtype=tensor.dtype))
        pieces.append((numbers[path], offset, tuple(tensor.shape)))
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    return map_tensors(tree, part), pieces


def join_pieces(
    trees: Sequence[Any], pieces: Sequence[Sequence[Piece]], like: Callable[[KeyPath, torch.Size], DTensor | None]
) -> Any:
    """Put together what each rank wrote, sharded as this process wants it.

    Args:
        trees: of every rank that saved; one of a single process needs no list of pieces.
        pieces: its list.
        like: path and shape of a whole tensor -> the DTensor whose mesh and placements it gets; None: whole.

    Returns:
        The tree, in memory of its own; DTensors on their mesh's device, other tensors on the CPU.

    Raises:
        ValueError: parts that are missing, or files that differ in what they list.
    """
    written = [tensors(tree) for tree in trees]
    paths = list(written[0])
    if any(list(other) != paths for other in written):
        raise ValueError("its files list different tensors")
    parts: dict[KeyPath, list[tuple[tuple[int, ...], Tensor]]] = {path: [] for path in paths}
    shapes: dict[KeyPath, torch.Size] = {}
    if len(trees) == 1 and not pieces[0]:
        pieces = [[(i, (0,) * x.ndim, tuple(x.shape)) for i, x in enumerate(written[0].values())]]
    for own, listed in zip(written, pieces, strict=True):
        for number, offset, shape in listed:
            parts[paths[number]].append((offset, own[paths[number]]))
            shapes[paths[number]] = torch.Size(shape)

    def whole(path: KeyPath, tensor: Tensor) -> Tensor:
        name = ".".join(map(str, path))
        if path not in shapes:
            raise ValueError(f"no file holds {name}")
        shape, target = shapes[path], like(path, shapes[path])
        if target is None:
            return _cut(name, parts[path], (0,) * len(shape), shape, tensor.dtype)
        (chunk,) = target.__create_chunk_list__()  # type: ignore[no-untyped-call]
        local = _cut(name, parts[path], tuple(chunk.offsets), chunk.sizes, tensor.dtype)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local.to(target.device_mesh.device_type),
            target.device_mesh,
            target.placements,
            run_check=False,
            shape=shape,
            stride=stride,
        )

    return map_tensors(trees[0], whole)


def _own_offset(path: KeyPath, tensor: Tensor, rank: int) -> tuple[int, ...] | None:
    """Where the part that this rank writes begins in the whole tensor; None if others write all of it."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim if rank == 0 else None
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(f"{'.'.join(map(str, path))} is a partial sum on each rank; save it after its all-reduce")
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None or not tensor.to_local().numel():
        return None
    if any(p.is_replicate() and place for p, place in zip(tensor.placements, coordinate, strict=True)):
        return None
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return tuple(chunk.offsets)


def _cut(
    name: str,
    parts: Sequence[tuple[tuple[int, ...], Tensor]],
    offset: tuple[int, ...],
    size: torch.Size,
    dtype: torch.dtype,
) -> Tensor:
    """The region [offset, offset + size) of a tensor that is given in parts, each with its own offset."""
    region = torch.empty(size, dtype=dtype)
    missing = region.numel()
    for start, part in parts:
        low = [max(a, b) for a, b in zip(offset, start, strict=True)]
        high = [min(a + n, b + m) for a, n, b, m in zip(offset, size, start, part.shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        there = tuple(slice(a - b, c - b) for a, b, c in zip(low, offset, high, strict=True))
        here = tuple(slice(a - b, c - b) for a, b, c in zip(low, start, high, strict=True))
        region[there] = part[here]
        missing -= math.prod(b - a for a, b in zip(low, high, strict=True))
    if missing:
        raise ValueError(f"{missing} of {region.numel()} numbers of {name} are in no file")
    return region
