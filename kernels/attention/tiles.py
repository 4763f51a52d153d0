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


# By the oldest architecture that it is for, and the largest head size.
_SMALL = {128: (Tile(16, 4, 2), Tile(64, 4, 2)), 256: (Tile(16, 4, 1), Tile(32, 4, 1))}
_LARGE = {128: (Tile(16, 4, 2), Tile(64, 4, 2)), 256: (Tile(16, 4, 2), Tile(32, 4, 2))}
TABLE = {
    80: _LARGE,
    86: _SMALL,  # 99 KiB of shared memory to a program, where 8.0 has 163
    90: _LARGE,
    100: _LARGE,
    120: _SMALL,
}
SPLIT = 2


def tiles(architecture: int, head_dim: int, *, invariant: bool) -> Tiles:
    """`architecture` as in sm_90. `invariant`: one tile for all, and a split of one block, so that
    every row gets the same bits however many others there are."""
    known = TABLE[max(a for a in TABLE if a <= architecture)]
    few, many = known[min(size for size in known if size >= head_dim)]
    return Tiles(many, many, 1) if invariant else Tiles(few, many, SPLIT)
