"""What a GPU's attention does in one call: rows and block tables go in; a list of work comes out.

Letters: T rows, G query heads to a key head. Every block of keys is reduced by itself, and blocks
are merged in order, so how the work is cut is a matter of speed:

- A sequence with several new rows is *walked*: a tile of its rows goes through all blocks it sees.
- A sequence with one new row (a decoding one) is *split* at fixed positions: each split leaves a
  partial result in a slot, and the slots are merged in order. Rows that name the same blocks
  throughout a split read them together, as one matrix product: so a shared prefix is read once.

A row is split where its position says, never where the batch does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
FIELDS = 6  # of an item: first row, rows, block table, first block, end block, split (walked: -1)


class Shape(NamedTuple):
    """What the plan has to know of the kernel and the model."""

    group: int  # G
    block_size: int  # tokens a block
    split: int  # blocks a split
    queries: int  # rows times G in a tile, which has room for G
    window: int  # keys that a row sees, itself included; 0 = all


class Plan(NamedTuple):
    items: I32  # [n, FIELDS]
    first_slots: I32  # [T] where a split row's partial results begin; -1 for a walked one
    slots: int  # that are used


def plan(positions: I32, sequences: I32, tables: I32, shape: Shape) -> Plan:
    """positions, sequences [T] as in `Batch`, tables [B, blocks] -> the work of all layers."""
    counts = np.bincount(sequences, minlength=len(tables))  # rows of each sequence
    alone = counts[sequences] == 1  # [T]
    walked = _walked(positions, sequences, counts, shape)
    rows = np.flatnonzero(alone).astype(np.int32)
    runs, first_slots, slots = _split(rows, positions, sequences, tables, shape)
    split = _cut(runs, shape.queries // shape.group)
    return Plan(np.concatenate([split, walked]), first_slots, slots)


def _walked(positions: I32, sequences: I32, counts: NDArray[Any], shape: Shape) -> I32:
    """Tiles of the sequences with more than one row, each over all blocks that it sees."""
    ends = np.cumsum(counts)
    several = counts > 1
    runs = np.zeros((int(several.sum()), FIELDS), np.int32)
    runs[:, 0], runs[:, 1] = (ends - counts)[several], counts[several]
    tiles = _cut(runs, shape.queries // shape.group)
    first, last = positions[tiles[:, 0]], positions[tiles[:, 0] + tiles[:, 1] - 1]
    tiles[:, 2] = sequences[tiles[:, 0]]
    tiles[:, 3] = first_visible(first, shape.window) // shape.block_size
    tiles[:, 4] = last // shape.block_size + 1
    tiles[:, 5] = -1
    return tiles


def _split(
    rows: I32, positions: I32, sequences: I32, tables: I32, shape: Shape
) -> tuple[I32, I32, int]:
    """Runs of `rows` that read one split together; every row's first slot; how many there are."""
    first_slots = np.full(len(positions), -1, np.int32)
    if not len(rows):
        return np.zeros((0, FIELDS), np.int32), first_slots, 0
    keys = shape.split * shape.block_size
    position, table = positions[rows], sequences[rows]  # [R]
    first, last = first_visible(position, shape.window) // keys, position // keys  # [R] splits
    each = last - first + 1
    first_slots[rows] = np.cumsum(each) - each
    splits = np.arange(int(last.max()) + 1)
    present = (splits[:, None] >= first) & (splits[:, None] <= last)  # [splits, R]
    whole = present & (splits[:, None] < last)  # all keys stand before the row
    width = len(splits) * shape.split
    named = np.full((len(rows), width), -1, np.int32)
    named[:, : tables.shape[1]] = tables[table][:, :width]
    named = named.reshape(len(rows), -1, shape.split).swapaxes(0, 1)  # [splits, R, blocks]
    joins = np.zeros_like(present)  # reads the split together with the row before
    joins[:, 1:] = whole[:, 1:] & whole[:, :-1] & (np.diff(rows) == 1)
    joins[:, 1:] &= (named[:, 1:] == named[:, :-1]).all(axis=-1)
    split, row = np.nonzero(present)
    starts = np.flatnonzero(~joins[split, row])
    runs = np.empty((len(starts), FIELDS), np.int32)
    runs[:, 0], runs[:, 1] = rows[row[starts]], np.diff([*starts, len(split)])
    runs[:, 2], runs[:, 5] = table[row[starts]], split[starts]
    runs[:, 3] = split[starts] * shape.split
    runs[:, 4] = np.minimum(runs[:, 3] + shape.split, position[row[starts]] // shape.block_size + 1)
    return runs, first_slots, int(each.sum())


def first_visible(positions: I32, window: int) -> I32:
    """The first position that a row at each of these sees."""
    return np.maximum(positions - window + 1, 0) if window else np.zeros_like(positions)


def _cut(runs: I32, most: int) -> I32:
    """The same runs in tiles of at most `most` rows."""
    tiles = -(-runs[:, 1] // most)
    out = np.repeat(runs, tiles, axis=0)
    within = (np.arange(len(out)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * most
    out[:, 0] += within
    out[:, 1] = np.minimum(out[:, 1] - within, most)
    return out
