"""Which tile attention computes on which GPU: an architecture and a head size go in.

A table, and nothing is tried at run time: the same machine gives the same bits tomorrow. The
numbers are those with which the compiler keeps everything in registers (`make gpu-report` shows
it); `make gpu-check` times them where there is a GPU.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """A tile of queries, and how it is computed."""

    queries: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    few: Tile  # for up to as many queries as it has; tensor cores take 16 rows at least
    many: Tile
    split: int  # blocks of keys that a decoding row's split has


# By the oldest architecture that it is for, and the largest head size. Four warps read shared
# memory half as often as eight for the same products; eight stand where four run out of registers.
# Everything fits the 99 KiB of shared memory that a program has on 8.6, 8.9 and 12.0.
_FEW = Tile(16, 4, 2)
TABLE = {
    80: {128: (_FEW, Tile(64, 4, 2)), 256: (_FEW, Tile(32, 4, 2))},
    90: {128: (_FEW, Tile(64, 4, 2)), 256: (_FEW, Tile(32, 8, 2))},
    100: {128: (_FEW, Tile(64, 8, 2)), 256: (_FEW, Tile(32, 8, 2))},
}
_FP32 = Tile(16, 4, 1)  # without tensor cores: for checks, not for speed
SPLIT = 2


def tiles(
    architecture: int, head_dim: int, element_size: int, group: int, *, invariant: bool
) -> Tiles:
    """`architecture` as in sm_90, bytes of an element, query heads to a key head, for which a large
    tile has room. `invariant`: one tile for all, and a split of one block, so that every row gets
    the same bits however many others there are."""
    known = TABLE[max(a for a in TABLE if a <= architecture)]
    few, many = known[min(size for size in known if size >= head_dim)]
    if element_size == 4:
        few = many = _FP32
    many = many._replace(queries=max(many.queries, 1 << (group - 1).bit_length()))
    return Tiles(many, many, 1) if invariant else Tiles(few, many, SPLIT)
