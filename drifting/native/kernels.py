"""kernels.c called on tensors; each function has a plain twin, and says where it applies.

Shapes: b problems, G generated, M references, D features, K samples of one block.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.native.library import load

_size, _float, _int, _array = ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int, ctypes.c_void_p
# Result and arguments after the range of problems, which every function begins with.
_SIGNATURES = {
    "add_samples": (None, (_array,) * 2 + (_size,) * 2),
    "centre_samples": (None, (_array,) * 4 + (_size,) * 4),
    "distances": (None, (_array, _size) * 3 + (_array,) * 3 + (_size,) * 2 + (_float, _int)),
    "mean_shift": (_int, (_array,) * 6 + (_size,) * 3 + (_float,) * 4 + (_int, _float)),
    "superpose": (None, (_array,) * 3 + (_size,) * 2),
    "mean_shift_of_small": (
        _int,
        (_array,) * 3 + (_size,) + (_array,) * 3 + (_size,) * 3 + (_float,) * 3 + (_int, _float),
    ),
    "distances_of_small": (None, (_array,) * 3 + (_size,) + (_array,) * 3 + (_size,) * 3 + (_float,)),
    "displacement_of_small": (_int, (_array, _size) + (_array,) * 3 + (_size,) + (_array,) * 2 + (_size,) * 3),
}
SMALLEST_SUM = 1e-25  # of kernels; see fields/affinities.py
Argument = Tensor | ctypes.Array | float | None  # type: ignore[type-arg]


@dataclass(frozen=True, slots=True)
class MeanShiftCoupling:
    """What the mean-shift kernel finds in b problems."""

    coefficients: Tensor  # [b, G, M]
    mass: Tensor  # [b, G, 2]  summed affinity of each sample to positives and to negatives
    on_floor: Tensor  # [b]  number of pairs on the floor


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can run on these: float32 in this machine's memory, and a compiler was found."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors) and load() is not None


def add_samples(raw: Tensor, total: Tensor) -> None:
    """total += sum over samples; raw [b, K, D], total [b, 1, D], both contiguous."""
    _run("add_samples", len(raw), raw, total, *raw.shape[1:])


def centre_samples(raw: Tensor, centre: Tensor, refs: Tensor, square: Tensor) -> None:
    """refs = raw - centre and square = |refs|^2; raw [b, K, D], centre [b, 1, D] -> refs [b, K, D], square [b, K].

    `raw` and `centre` are contiguous; the others in each problem.
    """
    strides = refs.stride(0), square.stride(0)
    _run("centre_samples", len(raw), raw, centre, refs, square, *raw.shape[1:], *strides)


def distances(
    inner: Tensor,
    own: Tensor,
    square: Tensor,
    weight: Tensor | None,
    distance: Tensor,
    row_sum: Tensor,
    *,
    smallest: float,
    self_is_gen: bool,
) -> None:
    """Distances [b, G, M] and sum_j w_j d_ij [b, G], of inner products and squared norms; `inner` may be `distance`."""
    strided = [part for x in (inner, own, square) for part in (x, x.stride(0))]
    sizes = distance.shape[1:]
    _run("distances", len(distance), *strided, weight, distance, row_sum, *sizes, smallest, self_is_gen)


def mean_shift(
    distance: Tensor,
    weight: Tensor | None,
    *,
    num_negative: int,
    temperature: float,
    floor: float,
    attraction: float,
    repulsion: float,
    mask_self: bool,
) -> MeanShiftCoupling | None:
    """Mean shift of distances [b, G, M] with reference weights [b, M]; None where a problem's sums underflow."""
    problems, num_gen, num_refs = distance.shape
    (found,) = _empty_couplings(distance, 1)
    columns = distance.new_empty(problems, num_refs)
    arrays = distance, weight, found.coefficients, found.mass, found.on_floor, columns
    settings = temperature, floor, attraction, repulsion, mask_self, SMALLEST_SUM
    done = _run("mean_shift", problems, *arrays, num_gen, num_refs, num_negative, *settings)
    return found if all(done) else None


def mean_shift_of_small(
    distance: Tensor,
    weight: Tensor | None,
    *,
    num_negative: int,
    temperatures: Sequence[float],
    floor: float,
    attraction: float,
    repulsion: float,
    mask_self: bool,
) -> list[MeanShiftCoupling] | None:
    """The same at every temperature, for many problems of few references."""
    problems, num_gen, num_refs = distance.shape
    found = _empty_couplings(distance, len(temperatures))
    outputs = [_addresses(parts) for parts in zip(*((c.coefficients, c.mass, c.on_floor) for c in found), strict=True)]
    kernel = (_float * len(temperatures))(*temperatures), len(temperatures)
    settings = floor, attraction, repulsion, mask_self, SMALLEST_SUM
    done = _run(
        "mean_shift_of_small", problems, distance, weight, *kernel, *outputs, num_gen, num_refs, num_negative, *settings
    )
    return found if all(done) else None


def _empty_couplings(distance: Tensor, count: int) -> list[MeanShiftCoupling]:
    problems, num_gen, num_refs = distance.shape
    shapes = (problems, num_gen, num_refs), (problems, num_gen, 2), (problems,)
    return [
        MeanShiftCoupling(*each) for each in zip(*(distance.new_empty(count, *s).unbind() for s in shapes), strict=True)
    ]


def superpose(parts: Sequence[Tensor], weight: Tensor, total: Tensor) -> None:
    """total = sum_t w_t x_t; T of x [b, G, L], w [b, 1|G, T], total [b, G, L]; it may be the first x."""
    rows = weight.shape[0] * weight.shape[1]
    _run("superpose", rows, _addresses(parts), weight, total, len(parts), total.numel() // rows)


def distances_of_small(
    gen: Tensor, blocks: Sequence[Tensor], weight: Tensor | None, distance: Tensor, row_sum: Tensor, *, smallest: float
) -> None:
    """Distances [b, G, M] and sum_j w_j d_ij [b, G] of samples as given.

    gen [b, G, D] and blocks of [b, K, D], contiguous.
    """
    references = _addresses(blocks), _counts(blocks), len(blocks)
    sizes = *distance.shape[1:], gen.shape[2]
    _run("distances_of_small", len(gen), gen, *references, weight, distance, row_sum, *sizes, smallest)


def displacement_of_small(coefficients: Tensor, gen: Tensor, blocks: Sequence[Tensor], *, out: Tensor) -> None:
    """out = sum_j c_ij (y_j - x_i), [b, G, D], of coefficients [b, G, M] and samples as given."""
    _displacement_of_small([coefficients], gen, blocks, out)


def squared_displacements_of_small(coefficients: Sequence[Tensor], gen: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """|sum_j c_ij (y_j - x_i)|^2 [b, G, T] of T coefficients [b, G, M] and samples as given."""
    return _displacement_of_small(coefficients, gen, blocks, None)


def _displacement_of_small(
    coefficients: Sequence[Tensor], gen: Tensor, blocks: Sequence[Tensor], drift: Tensor | None
) -> Tensor:
    parts, (problems, num_gen, num_refs) = len(coefficients), coefficients[0].shape
    square = gen.new_empty(problems, num_gen, parts)
    references = _addresses(blocks), _counts(blocks), len(blocks)
    sizes = num_gen, num_refs, gen.shape[2]
    arrays = _addresses(coefficients), parts, gen, *references, drift, square
    if not all(_run("displacement_of_small", problems, *arrays, *sizes)):
        raise MemoryError(f"no memory for a copy of one problem of {num_refs} references and {gen.shape[2]} features")
    return square


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (_array * len(tensors))(*(x.data_ptr() for x in tensors))


def _counts(blocks: Sequence[Tensor]) -> ctypes.Array[ctypes.c_ssize_t]:
    """Samples in each of blocks [b, K, D]."""
    return (_size * len(blocks))(*(x.shape[1] for x in blocks))


def _run(name: str, problems: int, *arguments: Argument) -> list[int]:
    """Call a function of kernels.c on all problems, on as many threads as torch uses; what each call returned."""
    function = _function(name)
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    threads = min(torch.get_num_threads(), problems)
    if threads == 1:
        return [function(0, problems, *values)]
    bounds = [problems * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), threads)
    return list(pool.map(lambda first, last: function(first, last, *values), bounds[:-1], bounds[1:]))


@functools.cache
def _function(name: str) -> Callable[..., int]:
    function = getattr(load(), name)
    result, arguments = _SIGNATURES[name]
    function.restype, function.argtypes = result, (_size, _size, *arguments)
    return function  # type: ignore[no-any-return]


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process (a forked child has none of its parent's); C code runs on them without the GIL."""
    return ThreadPoolExecutor(threads, thread_name_prefix="drifting")
