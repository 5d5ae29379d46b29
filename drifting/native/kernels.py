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
_ARGUMENTS = {
    "add_samples": (None, (_array,) * 2 + (_size,) * 3),
    "superpose": (None, (ctypes.POINTER(_array),) + (_array,) * 2 + (_size,) * 5),
    "direct_distances": (None, (_array,) * 3 + (_size,) + (_array,) * 3 + (_size,) * 5 + (_float,)),
    "direct_displacement": (None, (_array,) * 4 + (_size,) + (_array,) * 2 + (_size,) * 5),
    "centre_samples": (None, (_array,) * 4 + (_size,) * 5),
    "distances": (None, (_array, _size) * 3 + (_array,) * 3 + (_size,) * 3 + (_float, _int)),
    "mean_shift": (_size, (_array,) * 6 + (_size,) * 4 + (_float,) * 4 + (_int, _float)),
}
SMALLEST_SUM = 1e-25  # as in fields/affinities.py


@dataclass(frozen=True, slots=True)
class MeanShiftCoupling:
    """What the mean-shift kernel finds in b problems."""

    coefficients: Tensor  # [b, G, M]
    mass: Tensor  # [b, G, 2]  summed affinity of each sample to positives and to negatives
    on_floor: Tensor  # [b]  number of pairs on the floor


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    library = load()
    if library is None:
        return None
    function = getattr(library, name)
    function.restype, function.argtypes = _ARGUMENTS[name]
    return function  # type: ignore[no-any-return]


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can run on these: float32 in this machine's memory, and a compiler was found."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors) and load() is not None


def add_samples(raw: Tensor, total: Tensor) -> None:
    """total += sum over samples; raw [b, K, D], total [b, 1, D], both contiguous."""
    count, width = raw.shape[1:]

    def part(start: int, stop: int) -> None:
        add = _function("add_samples")
        add(_at(raw, start), _at(total, start), stop - start, count, width)  # type: ignore[misc]

    _over_problems(len(raw), part)


def superpose(parts: Sequence[Tensor], weights: Tensor, total: Tensor) -> None:
    """total = sum_t weights[t] parts[t], over rows; T of [R, L], weights [T, R], total [R, L]; it may be parts[0]."""
    pointers = (_array * len(parts))(*(part.data_ptr() for part in parts))
    rows, length = total.shape

    def part(start: int, stop: int) -> None:
        _function("superpose")(  # type: ignore[misc]
            pointers, weights.data_ptr(), total.data_ptr(), len(parts), start, stop, rows, length
        )

    _over_problems(rows, part)


def centre_samples(raw: Tensor, centre: Tensor, refs: Tensor, square: Tensor) -> None:
    """refs = raw - centre and square = |refs|^2; raw [b, K, D], centre [b, 1, D] -> refs [b, K, D], square [b, K].

    `raw` and `centre` are contiguous; the others in each problem.
    """
    count, width = raw.shape[1:]

    def part(start: int, stop: int) -> None:
        _function("centre_samples")(  # type: ignore[misc]
            _at(raw, start),
            _at(centre, start),
            _at(refs, start),
            _at(square, start),
            stop - start,
            count,
            width,
            refs.stride(0),
            square.stride(0),
        )

    _over_problems(len(raw), part)


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
    num_gen, num_refs = distance.shape[1:]

    def part(start: int, stop: int) -> None:
        _function("distances")(  # type: ignore[misc]
            _at(inner, start),
            inner.stride(0),
            _at(own, start),
            own.stride(0),
            _at(square, start),
            square.stride(0),
            None if weight is None else _at(weight, start),
            _at(distance, start),
            _at(row_sum, start),
            stop - start,
            num_gen,
            num_refs,
            smallest,
            self_is_gen,
        )

    _over_problems(len(distance), part)


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
    coefficients = torch.empty_like(distance)
    mass, on_floor = distance.new_empty(problems, num_gen, 2), distance.new_empty(problems)
    done = []

    def part(start: int, stop: int) -> None:
        column = distance.new_empty(num_refs)
        found = _function("mean_shift")(  # type: ignore[misc]
            _at(distance, start),
            None if weight is None else _at(weight, start),
            _at(coefficients, start),
            _at(mass, start),
            _at(on_floor, start),
            column.data_ptr(),
            stop - start,
            num_gen,
            num_refs,
            num_negative,
            temperature,
            floor,
            attraction,
            repulsion,
            mask_self,
            SMALLEST_SUM,
        )
        done.append(found == stop - start)

    _over_problems(problems, part)
    return MeanShiftCoupling(coefficients, mass, on_floor) if all(done) else None


def direct_distances(
    gen: Tensor, blocks: Sequence[Tensor], weight: Tensor | None, distance: Tensor, row_sum: Tensor, *, smallest: float
) -> None:
    """Distances [b, G, M] and sum_j w_j d_ij [b, G] of samples as given.

    gen [b, G, D] and blocks of [b, K, D], contiguous.
    """
    pointers, counts = _pointers(blocks)

    def part(start: int, stop: int) -> None:
        _function("direct_distances")(  # type: ignore[misc]
            gen.data_ptr(),
            pointers,
            counts,
            len(blocks),
            None if weight is None else weight.data_ptr(),
            distance.data_ptr(),
            row_sum.data_ptr(),
            start,
            stop,
            *distance.shape[1:],
            gen.shape[2],
            smallest,
        )

    _over_problems(len(gen), part)


def direct_displacement(coefficients: Tensor, gen: Tensor, blocks: Sequence[Tensor], *, out: Tensor | None) -> Tensor:
    """sum_j c_ij (y_j - x_i) [b, G, D], written to `out` where it is given; returns its squared norm, [b, G]."""
    pointers, counts = _pointers(blocks)
    square = coefficients.new_empty(coefficients.shape[:2])
    width = gen.shape[2]

    def part(start: int, stop: int) -> None:
        _function("direct_displacement")(  # type: ignore[misc]
            coefficients.data_ptr(),
            gen.data_ptr(),
            pointers,
            counts,
            len(blocks),
            None if out is None else out.data_ptr(),
            square.data_ptr(),
            start,
            stop,
            *coefficients.shape[1:],
            width,
        )

    _over_problems(len(gen), part)
    return square


def _at(x: Tensor, start: int) -> int:
    """Address of x[start]."""
    return int(x.data_ptr() + start * x.stride(0) * x.element_size())


def _pointers(blocks: Sequence[Tensor]) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_ssize_t]]:
    """Addresses and sample counts of blocks [b, K, D]."""
    count = len(blocks)
    return (_array * count)(*(x.data_ptr() for x in blocks)), (_size * count)(*(x.shape[1] for x in blocks))


def _over_problems(count: int, part: Callable[[int, int], None]) -> None:
    """Run part(start, stop) over all problems, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        part(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    list(_pool(os.getpid(), threads).map(part, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process (a forked child has none of its parent's); C code runs on them without the GIL."""
    return ThreadPoolExecutor(threads, thread_name_prefix="drifting")
