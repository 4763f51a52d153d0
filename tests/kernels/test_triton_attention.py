"""Attention over a plan, interpreted: random batches of sequences that share blocks, against the
reference; and what the plan promises."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from urial_engine.kernels.attention import reference
from urial_engine.kernels.attention.plan import Plan, Shape, plan
from urial_engine.kernels.attention.tiles import Tile
from urial_engine.kernels.attention.tiles import tile as table
from urial_engine.kernels.attention.triton_kernel import Parts, Work, attention

from .rungs import assert_no_worse
from .triton_cases import DEVICE, Case, naive, put, random_cases, rounding, single, wide

I32 = NDArray[np.int32]
BLOCK = 64
# Tiles that tests fill quickly, and the blocks of a split.
SMALL = (Tile(16, 4, 1), 2)
LARGE = (Tile(64, 4, 1), 2)
INVARIANT = (Tile(16, 4, 1), 1)
Way = tuple[Tile, int]


@dataclass
class Sequences:
    """A pool, and B sequences with their new rows: (first position, end), the last ones cached.

    The first `shared` blocks are those of sequence 0.
    """

    case: Case
    spans: list[tuple[int, int]]
    shared: int
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 16
    window: int = 0
    pool: torch.Tensor = field(init=False)
    tables: I32 = field(init=False)  # [B, blocks]

    def __post_init__(self) -> None:
        blocks = max(end for _, end in self.spans) // BLOCK + 1
        ids = self.case.rng.permutation(len(self.spans) * blocks).astype(np.int32)
        self.tables = ids.reshape(len(self.spans), blocks)
        self.tables[:, : self.shared] = self.tables[0, : self.shared]
        shape = (ids.size, 2, self.kv_heads, BLOCK, self.head_dim)
        self.pool = self.case.normal(*shape)
        self.q = self.case.normal(len(self.positions), self.kv_heads * self.group, self.head_dim)

    @property
    def positions(self) -> I32:
        return np.concatenate([np.arange(*span) for span in self.spans]).astype(np.int32)

    @property
    def sequences(self) -> I32:
        counts = [end - first for first, end in self.spans]
        return np.repeat(np.arange(len(counts)), counts).astype(np.int32)

    def planned(self, way: Way, rows: slice = slice(None)) -> Plan:
        tile, split = way
        shape = Shape(self.group, BLOCK, split, tile.queries, self.window)
        return plan(self.positions[rows], self.sequences[rows], self.tables, shape)

    def attend(self, way: Way, rows: slice = slice(None)) -> torch.Tensor:
        p, (tile, split) = self.planned(way, rows), way
        count = np.array([len(p.items)], np.int32)
        arrays = (p.items, count, self.positions[rows], p.first_slots, self.tables)
        work = Work(*map(put, arrays))
        # What no split writes must never be read.
        slots = (p.slots, self.q.shape[1])
        parts = Parts(
            *(torch.full((*slots, n), torch.nan, device=DEVICE) for n in (self.head_dim, 2))
        )
        q = self.q[rows].contiguous()
        how = {"tile": tile, "split": split, "window": self.window, "programs": 3}
        return attention(q, self.pool, work, parts, **how)

    def cache(self, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [S, K, D]."""
        end = self.spans[sequence][1]
        blocks = self.pool[self.tables[sequence]].transpose(0, 1).transpose(2, 3)
        keys, values = blocks.reshape(2, -1, self.kv_heads, self.head_dim)[:, :end]
        return keys, values

    def assert_matches(self, way: Way) -> None:
        out = self.attend(way)
        for sequence, (first, end) in enumerate(self.spans):
            rows = self.sequences == sequence
            keys, values = self.cache(sequence)
            at, window = np.arange(first, end), self.window or None
            q = self.q[put(rows)]
            truth = reference(wide(q), wide(keys), wide(values), at, window)
            scale = reference(wide(q), wide(keys), np.abs(wide(values)), at, window) + 1e-30

            plain = rounded_probabilities(q, keys, values, at, window)
            found = single(out[put(rows)])
            epsilon = 4 * rounding(self.case.dtype)
            assert_no_worse(found, plain, truth, scale, epsilon=epsilon)


def rounded_probabilities(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: I32, window: int | None
) -> NDArray[np.float32]:
    """The reference in fp32 with probabilities rounded before they meet the values, and the result
    after: values of every basis vector turn the reference into its own probabilities."""
    dtype = q.dtype
    basis = np.repeat(np.eye(len(k), dtype=np.float32)[:, None], k.shape[1], axis=1)  # [S, K, S]
    p = naive(reference, dtype, single(q), single(k), basis, at, window)  # [T, H, S]
    values = np.repeat(single(v), q.shape[1] // k.shape[1], axis=1)  # [S, H, D]
    out = np.einsum("ths,shd->thd", p, values).astype(np.float32)
    return single(torch.from_numpy(out).to(dtype))


def random_sequences(case: Case) -> Sequences:
    spans = []
    for _ in range(case.size(most=4)):
        first = case.size(64, 128, 192, most=250) - 1
        new = 1 if case.rng.random() < 0.6 else case.size(10, 32, most=40)
        spans.append((first, first + new))
    return Sequences(
        case,
        spans,
        shared=min(first for first, _ in spans) // BLOCK if case.rng.random() < 0.7 else 0,
        kv_heads=case.size(most=2),
        group=case.constant(most=5, few=(1, 3)),
        head_dim=2 * case.constant(8, 16, 32, most=40, few=(8, 17, 40)),
        window=case.size(1, 64, 128, most=200) if case.rng.random() < 0.4 else 0,
    )


@random_cases
def test_random_batches(part: range) -> None:
    for case in map(Case, part):
        random_sequences(case).assert_matches(INVARIANT if case.index % 3 == 0 else SMALL)


@pytest.mark.parametrize("head_dim", [2, 16, 64, 80, 96, 128, 256])
def test_head_sizes(head_dim: int) -> None:
    spans = [(140, 141), (130, 150), (200, 201)]
    Sequences(Case(1), spans, 2, group=2, head_dim=head_dim).assert_matches(SMALL)


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_a_tile_holds_a_group(architecture: int) -> None:
    for head_dim, size in ((2, 2), (64, 2), (128, 4), (130, 2), (256, 4)):
        for group in (1, 3, 16, 33, 64):
            assert table(architecture, head_dim, size, group).queries >= group


@pytest.mark.parametrize("group", [17, 33])
def test_a_large_group(group: int) -> None:
    Sequences(Case(3), [(140, 141), (130, 150)], 2, group=group).assert_matches(LARGE)


def test_a_shared_split_is_read_once_for_all() -> None:
    """32 sequences behind 4 blocks: two splits of 32 rows each, in tiles of 16 queries."""
    many = Sequences(Case(0), [(300 + i, 301 + i) for i in range(32)], 4, group=2)
    p = many.planned(SMALL)
    own = p.items[p.items[:, 1] == 1]
    assert sorted(map(tuple, p.items[p.items[:, 1] > 1][:, [0, 1, 5]])) == [
        (row, 8, split) for row in (0, 8, 16, 24) for split in (0, 1)
    ]
    assert len(own) == 32 and (own[:, 5] == 2).all()  # what each has for itself
    assert p.slots == 32 * 3
    many.assert_matches(SMALL)


def test_what_is_not_the_same_is_not_shared() -> None:
    spans = [(300, 301)] * 3
    one = Sequences(Case(0), spans, 4)
    one.tables[1, 1] = one.tables[1, 4]  # the middle one has another second block
    p = one.planned(SMALL)
    assert sorted(map(tuple, p.items[:, [0, 1, 5]])) == [
        *[(0, 1, 0), (0, 1, 2), (0, 3, 1), (1, 1, 0), (1, 1, 2), (2, 1, 0), (2, 1, 2)]
    ]
    one.assert_matches(SMALL)


def test_a_split_that_a_row_sees_in_part_is_its_own() -> None:
    """Two rows that name the same blocks, and end in different ones of them."""
    two = Sequences(Case(5), [(130, 131), (250, 251)], 4)
    items = two.planned(SMALL).items[:, [0, 1, 4, 5]].tolist()
    assert items == [[0, 2, 2, 0], [0, 1, 3, 1], [1, 1, 4, 1]]
    two.assert_matches(SMALL)


@pytest.mark.parametrize("window", [0, 70])
def test_bits_do_not_depend_on_the_batch(window: int) -> None:
    """With any tile, that of the table among them: a row alone has the bits it has among others."""
    for each in (SMALL, INVARIANT, (table(90, 128, 2, 2), 2)):
        spans = [(200 + i, 201 + i) for i in range(5)]
        many = Sequences(Case(0), spans, 3, group=2, window=window)
        whole = many.attend(each)
        for row in range(5):
            part = slice(row, row + 1)
            assert torch.equal(many.attend(each, part), whole[part])


@pytest.mark.parametrize("window", [0, 70])
def test_bits_do_not_depend_on_the_chunk(window: int) -> None:
    """With splits of one block: walked as a whole, in pieces, or split row by row."""
    one = Sequences(Case(2), [(150, 200)], 0, group=2, window=window)
    whole = one.attend(INVARIANT)
    for step in (1, 7, 30):
        rows = [slice(first, min(first + step, 50)) for first in range(0, 50, step)]
        pieces = [one.attend(INVARIANT, part) for part in (rows if step > 1 else rows[::7])]
        expected = [whole[part] for part in (rows if step > 1 else rows[::7])]
        assert torch.equal(torch.cat(pieces), torch.cat(expected))


def test_what_is_not_visible_changes_nothing() -> None:
    """Large numbers beyond the row and before its window."""
    one = Sequences(Case(0), [(100, 101)], 0, window=50)
    before = one.attend(SMALL)
    blocks = one.pool[one.tables[0]]  # [2, 2, K, 64, D]
    one.pool[one.tables[0, 0], :, :, :51] = 1e4
    one.pool[one.tables[0, 1], :, :, 37:] = -1e4
    assert not torch.equal(one.pool[one.tables[0]], blocks)
    assert torch.equal(one.attend(SMALL), before)
