"""Triton programs of the default field, each for one problem or a part of it; called by kernels.py, which says what
their arguments are.

Shapes: B problems, G generated, M references, R rows of a block, D features, T temperatures.
"""

import triton
import triton.language as tl


@triton.jit
def samples_of(base, problem, row, first, count, stride_problem, stride_sample, column, width):
    """Samples [R, d] of one block that stands at rows first .. first + count of a tile; zero elsewhere."""
    own = row - first
    inside = (own >= 0) & (own < count)
    at = base + problem * stride_problem + own[:, None].to(tl.int64) * stride_sample + column[None, :]
    return tl.load(at, mask=inside[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def centre(
    own,
    neg,
    pos,
    gen,
    out,
    square,
    n_own,
    n_neg,
    n_pos,
    n_gen,
    s_own,
    s_neg,
    s_pos,
    s_gen,
    r_own,
    r_neg,
    r_pos,
    r_gen,
    problems,
    width,
    chunk,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_NEG: tl.constexpr,
    HAS_GEN: tl.constexpr,
):
    problem = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    refs = n_own + n_neg + n_pos
    rows = refs + n_gen
    total = tl.zeros([ROWS], tl.float32)
    for start in range(part * chunk, (part + 1) * chunk, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = samples_of(own, problem, row, 0, n_own, s_own, r_own, column, width)
        if HAS_NEG:
            x += samples_of(neg, problem, row, n_own, n_neg, s_neg, r_neg, column, width)
        x += samples_of(pos, problem, row, n_own + n_neg, n_pos, s_pos, r_pos, column, width)
        mean = tl.sum(x, 0) / refs
        if HAS_GEN:
            x += samples_of(gen, problem, row, refs, n_gen, s_gen, r_gen, column, width)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        x = tl.where(inside, x - mean[None, :], 0.0)
        tl.store(out + (problem * rows + row[:, None]) * width + column[None, :], x, mask=inside)
        total += tl.sum(x * x, 1)
    tl.store(square + (part * problems + problem) * rows + row, total, mask=row < rows)


@triton.jit
def distance_tile(
    inner, square, problem, row, column, num_gen, num_refs, rows, problems, parts, s_inner, r_inner, first_gen,
    smallest, SELF: tl.constexpr,
):  # fmt: skip
    """|x_i - y_j| [G, M] of one problem, from inner products and squared norms; 0 outside."""
    inside = (row < num_gen)[:, None] & (column < num_refs)[None, :]
    at = inner + problem * s_inner + row[:, None].to(tl.int64) * r_inner + column[None, :]
    product = tl.load(at, mask=inside, other=0.0)
    of_gen = tl.zeros_like(row).to(tl.float32)
    of_refs = tl.zeros_like(column).to(tl.float32)
    for part in range(parts):
        base = square + (part * problems + problem) * rows
        of_gen += tl.load(base + first_gen + row, mask=row < num_gen, other=0.0)
        of_refs += tl.load(base + column, mask=column < num_refs, other=0.0)
    squared = of_gen[:, None] + (of_refs[None, :] - 2 * product)
    # Not tl.maximum, which swallows NaN: a sample that is not finite must show in every figure.
    distance = tl.sqrt(tl.where(squared < smallest, smallest, squared))
    if SELF:
        distance = tl.where(row[:, None] == column[None, :], tl.sqrt(smallest), distance)
    return tl.where(inside, distance, 0.0)


@triton.jit
def distance_sums(
    inner, square, weight, total, num_gen, num_refs, rows, problems, parts, s_inner, r_inner, first_gen, smallest,
    GEN: tl.constexpr, REFS: tl.constexpr, SELF: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, GEN), tl.arange(0, REFS)
    distance = distance_tile(
        inner, square, problem, row, column, num_gen, num_refs, rows, problems, parts, s_inner, r_inner, first_gen,
        smallest, SELF,
    )  # fmt: skip
    mass = num_refs * 1.0
    if WEIGHTED:
        w = tl.load(weight + problem * num_refs + column, mask=column < num_refs, other=0.0)
        distance *= w[None, :]
        mass = tl.sum(w, 0)
    tl.store(total + 2 * problem, tl.sum(tl.sum(distance, 1), 0))
    tl.store(total + 2 * problem + 1, mass * num_gen)


@triton.jit
def couplings(
    inner, square, weight, unit, temperature, coefficients, contact, num_gen, num_refs, num_negative, rows, problems,
    parts, s_inner, r_inner, first_gen, s_unit, temperatures, smallest, smallest_log, floor, attraction,
    repulsion,
    GEN: tl.constexpr, REFS: tl.constexpr, SELF: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr, FLOORED: tl.constexpr, UNBALANCED: tl.constexpr, CONTACT: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64)
    row, column = tl.arange(0, GEN), tl.arange(0, REFS)
    inside = (row < num_gen)[:, None] & (column < num_refs)[None, :]
    diagonal = row[:, None] == column[None, :]
    distance = distance_tile(
        inner, square, problem, row, column, num_gen, num_refs, rows, problems, parts, s_inner, r_inner, first_gen,
        smallest, SELF,
    )  # fmt: skip
    if SCALED:
        distance /= tl.load(unit + problem * s_unit)
    log_kernel = tl.where(inside, -distance / tl.load(temperature + k), float("-inf"))
    if MASKED:
        log_kernel = tl.where(diagonal, float("-inf"), log_kernel)
    # Rows and columns outside, and those without any kernel, have no largest entry: exp(-inf - 0) is 0.
    high = tl.max(log_kernel, 1)
    high = tl.where(high == float("-inf"), 0.0, high)
    by_row = high + tl.log(tl.sum(tl.exp(log_kernel - high[:, None]), 1))
    by_row = tl.where(by_row < smallest_log, smallest_log, by_row)
    wide = tl.max(log_kernel, 0)
    wide = tl.where(wide == float("-inf"), 0.0, wide)
    by_column = wide + tl.log(tl.sum(tl.exp(log_kernel - wide[None, :]), 0))
    by_column = tl.where(by_column < smallest_log, smallest_log, by_column)
    affinity = tl.exp(log_kernel - 0.5 * (by_row[:, None] + by_column[None, :]))
    if FLOORED:
        low = affinity <= floor
        on_floor = tl.sum(tl.sum(tl.where(low & inside, 1.0, 0.0), 1), 0)
        affinity = tl.where(low, floor, affinity)
    else:
        on_floor = 0.0
    affinity = tl.where(inside, affinity, 0.0)
    if WEIGHTED:
        affinity *= tl.load(weight + problem * num_refs + column, mask=column < num_refs, other=0.0)[None, :]
    repels = (column < num_negative)[None, :]
    negative = tl.sum(tl.where(repels, affinity, 0.0), 1)
    positive = tl.sum(tl.where(repels, 0.0, affinity), 1)
    pull = (attraction * negative)[:, None]
    push = (-repulsion * positive)[:, None]
    coefficient = affinity * tl.where(repels, push, pull)
    if UNBALANCED:
        # y_i - x_i = 0: what the self pair gets moves nothing, and makes the row sum to zero.
        coefficient -= tl.where(diagonal, tl.sum(coefficient, 1)[:, None], 0.0)
    at = coefficients + ((problem * temperatures + k) * num_gen + row[:, None]) * num_refs + column[None, :]
    tl.store(at, coefficient, mask=inside)
    if CONTACT:
        place = contact + (k * problems + problem) * 3
        tl.store(place, tl.sum(positive, 0) / num_gen)
        tl.store(place + 1, tl.sum(negative, 0) / num_gen)
        tl.store(place + 2, on_floor / (num_gen * num_refs))


@triton.jit
def row_products(x, y, out, size, chunk, parts, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(part * chunk, (part + 1) * chunk, WIDTH):
        entry = start + tl.arange(0, WIDTH)
        inside = entry < size
        at = row * size + entry
        total += tl.load(x + at, mask=inside, other=0.0) * tl.load(y + at, mask=inside, other=0.0)
    tl.store(out + row * parts + part, tl.sum(total, 0))


@triton.jit
def superpose(
    drifts, unit, mean_square, out, gain, smallest, size, parts, temperatures, s_unit, s_mean_square,
    WIDTH: tl.constexpr, NORMALIZED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    problem = program // parts
    entry = program % parts * WIDTH + tl.arange(0, WIDTH)
    inside = entry < size
    total = tl.zeros([WIDTH], tl.float32)
    for k in range(temperatures):
        drift = tl.load(drifts + (problem * temperatures + k) * size + entry, mask=inside, other=0.0)
        if NORMALIZED:
            square = tl.load(mean_square + problem * s_mean_square + k)
            drift /= tl.sqrt(tl.where(square < smallest, smallest, square))
        total += drift
    total *= gain / tl.load(unit + problem * s_unit)
    tl.store(out + problem * size + entry, total, mask=inside)


@triton.jit
def sums_of_sets(values, bounds, out, temperatures, WIDTH: tl.constexpr):
    first, k = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(bounds + first), tl.load(bounds + first + 1)
    total = tl.zeros([WIDTH], tl.float32)
    for begin in range(start, stop, WIDTH):
        row = begin + tl.arange(0, WIDTH)
        total += tl.load(values + row * temperatures + k, mask=row < stop, other=0.0)
    tl.store(out + first * temperatures + k, tl.sum(total, 0))
