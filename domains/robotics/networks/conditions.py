"""One condition for several chunks: what depends on the observation alone is computed once for all of its chunks."""

from torch import Tensor


def for_each_chunk(rows: Tensor, chunks: int) -> Tensor:
    """[K / n, ...] -> [K = chunks, ...]: each row n times in a row; n = 1 returns `rows` itself.

    Raises ValueError if K is no multiple of the number of rows.
    """
    if len(rows) == chunks:
        return rows
    if len(rows) == 0 or chunks % len(rows):
        raise ValueError(f"cond must have a row for each chunk or for each n of them, got {len(rows)} for {chunks}")
    return rows.repeat_interleave(chunks // len(rows), dim=0)
