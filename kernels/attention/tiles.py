"""Which tile attention computes on which GPU: an architecture and a head size go in.

A table, and nothing is tried at run time: the same machine gives the same bits tomorrow. The
numbers are those with which the compiler keeps everything in registers (`make gpu-report` shows
it); `python -m benchmarks.gpu_check.tune` times all others, where there is a GPU, and none had
been there when they were chosen.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """A tile of queries, and how it is computed."""

    queries: int
    warps: int
    stages: int


# By the oldest architecture that it is for, and the largest head size. Four warps read shared
# memory half as often as eight for the same products; eight stand where four run out of registers.
# Everything fits the 99 KiB of shared memory that a program has on 8.6, 8.9 and 12.0.
TABLE = {
    80: {128: Tile(64, 4, 2), 256: Tile(32, 4, 2)},
    90: {128: Tile(64, 4, 2), 256: Tile(32, 8, 2)},
    100: {128: Tile(64, 8, 2), 256: Tile(32, 8, 2)},
}
FP32 = Tile(16, 4, 1)  # without tensor cores: for checks, not for speed


def tile(architecture: int, head_dim: int, element_size: int, group: int) -> Tile:
    """`architecture` as in sm_90, bytes of an element, query heads to a key head, for which a tile
    has room. It does not depend on the work: every row gets the same bits among any others."""
    known = TABLE[max(a for a in TABLE if a <= architecture)]
    found = known[min(size for size in known if size >= head_dim)] if element_size == 2 else FP32
    return found._replace(queries=max(found.queries, 1 << (group - 1).bit_length()))


def split(*, invariant: bool) -> int:
    """Blocks of keys that a decoding row's split has. `invariant`: one, as when it is walked."""
    return 1 if invariant else 2
