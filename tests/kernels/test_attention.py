"""Attention over blocks of the cache on every rung: truth, the window's edge, one result however
rows are cut, and sharing that changes no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .attention_cases import Case, attend
from .rungs import RUNGS, Rung, every_rung

# Query heads, key heads, head size: one past a panel (32), pairs (2), groups up to a tile of rows.
SHAPES = [(1, 1, 2), (3, 1, 30), (4, 4, 32), (6, 2, 34), (9, 3, 64), (8, 1, 66), (50, 1, 8)]
SHAPES += [(1, 1, 128), (2, 1, 130), (1, 1, 256)]
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200]
CUT = [(9, 3, 32), (2, 2, 130), (6, 3, 64)]  # few queries a key head; 1, 5 and 2 panels of values
WINDOWS = [0, 1, 2, 63, 64, 65, 100, 128, 1000]


@every_rung
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(rung: Rung, shape: tuple[int, int, int]) -> None:
    for length in (1, 33, 65, 129):
        Case.random(shape, length).assert_matches(rung)


@every_rung
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(rung: Rung, length: int) -> None:
    Case.random((6, 2, 16), length).assert_matches(rung)


@every_rung
@pytest.mark.parametrize("window", WINDOWS)
def test_every_window(rung: Rung, window: int) -> None:
    Case.random((3, 1, 16), 200, window).assert_matches(rung)


@every_rung
@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 100])
def test_the_window_ends_at_its_edge(rung: Rung, window: int) -> None:
    """Key i - w + 1 changes row i, key i - w not one bit of it; nor does any key after i."""
    case = Case.random((2, 1, 8), 140, window)
    before = case.run(rung)
    for at in (0, 5, 63, 64, 65, 139):
        k, v = case.k.copy(), case.v.copy()
        k[at] += 2
        v[at] -= 3
        after = Case(case.q, k, v, case.positions, window).run(rung)
        changed = (after != before).any(axis=(1, 2))
        sees = (case.positions >= at) & (case.positions < at + window)
        np.testing.assert_array_equal(changed, sees)


def far(case: Case) -> None:
    case.q *= np.float32(1e4)
    case.k *= np.float32(1e4)


def peaks(case: Case) -> None:
    case.k[::7] *= np.float32(100)


def ties(case: Case) -> None:
    case.k[:] = case.k[:1]


def flat(case: Case) -> None:
    case.q[:] = 0
    case.v *= np.float32(1e4)


def falling(case: Case) -> None:
    """Each block's scores lie far below those of the one before: its weight is next to nothing."""
    case.q[:], case.k[:] = 1, -np.arange(len(case.k), dtype=np.float32)[:, None, None]


def rising(case: Case) -> None:
    case.q[:], case.k[:] = 1, np.arange(len(case.k), dtype=np.float32)[:, None, None]


@every_rung
@pytest.mark.parametrize("change", [far, peaks, ties, flat, falling, rising])
def test_hard_numbers(rung: Rung, change: Any) -> None:
    case = Case.random((3, 1, 16), 150)
    change(case)
    case.assert_matches(rung)


@every_rung
def test_equal_keys_give_the_mean(rung: Rung) -> None:
    case = Case.random((1, 1, 4), 64)
    ties(case)
    case.v[:] = np.arange(64, dtype=np.float32)[:, None, None]  # exact in bf16, and so is its sum
    mean = np.arange(64, dtype=np.float64) / 2
    rounding = 2.0**-7 if rung.rounds_activations else 2.0**-22
    np.testing.assert_allclose(case.run(rung)[:, 0, 0], mean, rtol=rounding)


@every_rung
@pytest.mark.parametrize("shape", CUT, ids=str)
def test_rows_have_the_same_bits_however_they_are_cut(
    rung: Rung, shape: tuple[int, int, int]
) -> None:
    case = Case.random(shape, 150, window=70)
    whole = case.run(rung)
    for tile_queries in (1, 3, 16, 33, 128):
        np.testing.assert_array_equal(case.run(rung, tile_queries=tile_queries), whole)
    for threads in (2, 4):
        np.testing.assert_array_equal(case.run(rung, threads=threads), whole)
    for chunk in (1, 7, 64):  # keys and values arrive with their queries
        cache, table, parts = case.cache(rung, 3), [2, 0, 1], []
        for begin in range(0, 150, chunk):
            case.write(cache, table, begin, begin + chunk)
            part = slice(begin, begin + chunk)
            parts.append(attend(cache, case.q[part], case.positions[part], [table]))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    backwards = Case(case.q[::-1].copy(), case.k, case.v, case.positions[::-1].copy(), 70)
    np.testing.assert_array_equal(backwards.run(rung)[::-1], whole)


@every_rung
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("shape", CUT, ids=str)
def test_parts_of_a_tile_have_the_bits_of_the_whole(
    rung: Rung, shape: tuple[int, int, int], window: int
) -> None:
    case = Case.random(shape, 200, window)
    some = np.array([0, 199, 64, 130, 63])  # each part has blocks that some of these do not see
    few = Case(case.q[some], case.k, case.v, case.positions[some], window)
    whole = case.run(rung)[some]
    for parts in (0, 1, 2, 3, 4, 7):
        np.testing.assert_array_equal(few.run(rung, threads=2, parts=parts), whole)


@every_rung
def test_sharing_a_block_changes_no_bit(rung: Rung) -> None:
    """Five sequences over two shared blocks and a tail each: beside each other, apart from each
    other, and each over copies of its own."""
    prefix, count, length = Case.random((4, 2, 16), 128), 5, 150
    tails = [Case.random((4, 2, 16), length - 128 - i) for i in range(count)]
    cases = []
    for tail in tails:
        k, v = (np.concatenate(pair) for pair in [(prefix.k, tail.k), (prefix.v, tail.v)])
        cases.append(Case(tail.q, k, v, np.arange(128, len(k), dtype=np.int32)))
    cache = prefix.cache(rung, 2 + count, threads=2)
    prefix.write(cache, [6, 0])
    tables = [[6, 0, 1 + i] for i in range(count)]
    for case, table in zip(cases, tables, strict=True):
        case.write(cache, table, 128)
    q = np.concatenate([case.q for case in cases])
    positions = np.concatenate([case.positions for case in cases])
    owner = np.repeat(np.arange(count, dtype=np.int32), [len(case.q) for case in cases])
    alone = []
    for case in cases:
        own = case.cache(rung, 3)
        case.write(own, [1, 2, 0])
        alone.append(attend(own, case.q, case.positions, [[1, 2, 0]]))
    together = attend(cache, q, positions, tables, owner)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    mixed = np.random.default_rng(0).permutation(len(q))
    shuffled = attend(cache, q[mixed], positions[mixed], tables, owner[mixed])
    np.testing.assert_array_equal(shuffled, together[mixed])
    for rows in (slice(0, 1), slice(20, 30)):
        part = attend(cache, q[rows], positions[rows], tables, owner[rows])
        np.testing.assert_array_equal(part, together[rows])


@every_rung
def test_what_is_not_visible_changes_nothing(rung: Rung) -> None:
    """Slots that an earlier sequence filled, past the position and before the window."""
    case, old = Case.random((2, 1, 8), 100, 40), Case.random((2, 1, 8), 192)
    old.k *= np.float32(1e20)
    old.v *= np.float32(1e30)
    clean = case.run(rung)
    cache = case.cache(rung, 3)
    old.write(cache, [0, 1, 2])
    case.write(cache, [1, 0])
    out = attend(cache, case.q, case.positions, [[1, 0]])
    np.testing.assert_array_equal(out, clean)


@every_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_stays_in_its_row_and_head(rung: Rung, bad: float) -> None:
    case = Case.random((4, 2, 8), 70)
    clean = case.run(rung)
    case.q[5, 2, 3] = bad
    out = case.run(rung)
    assert np.isnan(out[5, 2]).all()
    out[5, 2] = clean[5, 2]
    np.testing.assert_array_equal(out, clean)


@every_rung
def test_scores_beyond_fp32_become_nan_not_a_wrong_number(rung: Rung) -> None:
    case = Case.random((1, 1, 8), 70)
    case.q[66:] = 1e30
    case.k[3] = 1e30
    out = case.run(rung)
    assert np.isnan(out[66:]).all() and np.isfinite(out[:3]).all()


def test_bad_shapes_are_refused_and_leave_the_cache_usable() -> None:
    case = Case.random((2, 1, 4), 70)
    cache = case.cache(RUNGS[-1], 2, threads=2)
    case.write(cache, [0, 1])
    good = attend(cache, case.q, case.positions, [[0, 1]])
    for arguments, message in [
        ((case.q[:5], case.positions, [[0, 1]]), "queries must be"),
        ((case.q, case.positions, [[0]]), "block table"),
        ((case.q, case.positions, [[0, 2]]), "block outside the pool"),
        ((case.q, case.positions, [[0, 1]], case.positions), "sequence outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            attend(cache, *arguments)  # type: ignore[arg-type]
        np.testing.assert_array_equal(attend(cache, case.q, case.positions, [[0, 1]]), good)
    with pytest.raises(ValueError, match="1 to 128 queries"):
        attend(cache, case.q, case.positions, [[0, 1]], tile_queries=0)
    with pytest.raises(ValueError, match="must fit in it"):
        cache.attend(
            case.q, case.positions, case.positions * 0, np.array([[0, 1]], np.int32), 48, 2
        )
