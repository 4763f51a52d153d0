"""The head's scores on every rung: what they say of 10,000 positions with planted ties, against
the logits that the same head makes; the statistics of a tile; and the exponential under them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine import _native
from urial_engine.kernels.matmul import reference as matmul
from urial_engine.kernels.rank import Scores, reference
from urial_engine.kernels.rank import compare as reference_compare
from urial_engine.kernels.rank.native import compare, head, score

from .rungs import F32, RUNGS, Rung, assert_no_worse, every_isa, every_rung

I32 = NDArray[np.int32]
VOCABULARIES = [1, 2, 31, 32, 33, 255, 256, 257, 520]  # a panel is 32, a tile 256
EPSILON = 4e-6  # nats, of numbers up to 10: sums of 256 fp32 terms a tile, in double between tiles


def logits(model: Any, hidden: F32) -> F32:
    z, bad = model.logits(hidden)
    assert bad == -1
    return np.asarray(z)


def states(rows: int, size: int, seed: int = 0) -> F32:
    return np.random.default_rng([rows, seed]).normal(size=(rows, size)).astype(np.float32)


def tied_weight(vocab: int, size: int, scale: float = 1.0) -> F32:
    """[V, C] where about a third of the tokens repeat the row of another, far off or beside it."""
    rng = np.random.default_rng(vocab)
    w = rng.normal(size=(vocab, size), scale=scale).astype(np.float32)
    twins = rng.integers(vocab, size=(vocab // 3, 2))
    w[twins[:, 0]] = w[twins[:, 1]]
    return w


def assert_equal_scores(ours: Scores, truth: Scores, epsilon: float = EPSILON) -> None:
    for name in ("rank", "ties", "top_ids"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(truth, name), err_msg=name)
    for name in ("logprob", "entropy", "top_logprobs"):
        a, b = getattr(ours, name), getattr(truth, name)
        np.testing.assert_allclose(a, b, atol=epsilon, rtol=2.0**-23, err_msg=name)


@every_rung
def test_ten_thousand_positions_with_planted_ties(rung: Rung) -> None:
    vocab, size, rows = 301, 24, 10_000
    model = head(tied_weight(vocab, size), threads=2, **rung.options)
    hidden = states(rows, size)
    hidden[17] = hidden[9000]  # rows repeat
    hidden[4000] = 0  # every token ties with every other
    targets = np.random.default_rng(1).integers(vocab, size=rows).astype(np.int32)
    z = logits(model, hidden)
    truth = reference(z.astype(np.float64), targets, 12)
    assert (truth.ties > 0).mean() > 0.3 and truth.ties[4000] == vocab - 1
    ours = score(model, hidden, targets, 12)
    assert_equal_scores(ours, truth)
    assert ours.top_ids[4000].tolist() == list(range(12))


@every_rung
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_every_vocabulary(rung: Rung, vocab: int) -> None:
    """k = 0, 1 and V; a row count past the block of 256 that reads the head together."""
    model = head(tied_weight(vocab, 33), **rung.options)
    hidden = states(259, 33)
    targets = (np.arange(259) * 7 % vocab).astype(np.int32)
    z = logits(model, hidden).astype(np.float64)
    for top_k in {0, 1, vocab}:
        rows = 3 if top_k == 520 else 259
        ours = score(model, hidden[:rows], targets[:rows], top_k)
        assert_equal_scores(ours, reference(z[:rows], targets[:rows], top_k))


@every_rung
def test_logits_against_truth(rung: Rung) -> None:
    w, hidden = tied_weight(257, 65), states(40, 65)
    z = logits(head(w, **rung.options), hidden)
    x, stored = rung.read(hidden), rung.stored(w)
    size = matmul(np.abs(x).astype(np.float64), np.abs(stored).astype(np.float64))
    truth = matmul(x.astype(np.float64), stored.astype(np.float64))
    assert_no_worse(z, matmul(x, stored), truth, size, epsilon=2.0**-22)


@every_rung
def test_rows_have_the_same_bits_alone_and_together(rung: Rung) -> None:
    w, hidden = tied_weight(300, 40), states(270, 40)
    targets = (np.arange(270) % 300).astype(np.int32)
    one = head(w, **rung.options)
    whole, z = score(one, hidden, targets, 5), logits(one, hidden)
    for threads in (2, 3):
        several = head(w, threads=threads, **rung.options)
        for a, b in zip(score(several, hidden, targets, 5), whole, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(logits(several, hidden), z)
    for row in (0, 31, 32, 255, 256, 269):
        part = slice(row, row + 1)
        for a, b in zip(score(one, hidden[part], targets[part], 5), whole, strict=True):
            np.testing.assert_array_equal(a, b[part])
        np.testing.assert_array_equal(logits(one, hidden[part]), z[part])


def exact_head(z: F32, isa: str = "portable", dtype: str = "float32") -> tuple[Any, F32]:
    """A head and hidden states whose logits are exactly z [M, V]: row m picks column m."""
    return head(np.ascontiguousarray(z.T), isa=isa, dtype=dtype), np.eye(len(z), dtype=np.float32)


@every_isa
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e37])
def test_every_magnitude(isa: str, scale: float) -> None:
    """Flat, peaked, and so far apart that all but the largest have no weight; 1e37 lies beyond
    where a padding column's logit could once be mistaken for a real one."""
    z = np.random.default_rng(2).normal(size=(6, 290)).astype(np.float32)
    z[0], z[1, :], z[1, 77] = 5, -3, 4
    z[2] = -np.abs(z[2]) - 1
    z *= np.float32(scale)
    model, hidden = exact_head(z, isa)
    targets = np.array([0, 77, 3, 289, 5, 6], np.int32)
    np.testing.assert_array_equal(logits(model, hidden), z)
    truth = reference(z.astype(np.float64), targets, 290)
    assert_equal_scores(score(model, hidden, targets, 290), truth)


@every_rung
def test_a_logit_that_is_not_finite_names_its_row(rung: Rung) -> None:
    """NaN, inf and -inf in one logit each, made in the head itself; the first such row is named,
    whichever exit asks."""
    w, hidden = np.ones((300, 2), np.float32), np.ones((270, 2), np.float32)
    w[260] = 1e30, -1e30
    model = head(w, **rung.options)
    targets = np.zeros(270, np.int32)
    assert score(model, hidden, targets).rank[0] == 1
    for bad in ([1e30, 1e30], [1e30, 0], [-1e30, 0], [np.nan, 0], [0, np.inf]):
        for rows in ([3], [0, 5], [269], [258, 269]):
            broken = hidden.copy()
            broken[rows] = bad
            with pytest.raises(ValueError, match=f"row {rows[0]} has a logit"):
                score(model, broken, targets)
            with pytest.raises(ValueError, match=f"row {rows[0]} has a logit"):
                compare(model, hidden, targets, model, broken)
            assert model.logits(broken)[1] == rows[0]
    assert score(model, hidden, targets).ties[0] >= 298  # nothing of it is left behind


@every_rung
@pytest.mark.parametrize("vocab", [1, 33, 257, 300])
def test_two_heads(rung: Rung, vocab: int) -> None:
    """Scores and both divergences over one pass, of heads with different hidden sizes."""
    base = head(tied_weight(vocab, 20, scale=0.5), threads=2, **rung.options)
    aligned = head(tied_weight(vocab, 33, scale=0.5), **rung.options)
    h_base, h_aligned = states(258, 20), states(258, 33)
    targets = (np.arange(258) % vocab).astype(np.int32)
    z_base, z_aligned = logits(base, h_base), logits(aligned, h_aligned)
    mine, theirs, forward, backward = compare(base, h_base, targets, aligned, h_aligned, 3 % vocab)
    wide = z_base.astype(np.float64), z_aligned.astype(np.float64)
    assert_equal_scores(mine, reference(wide[0], targets, 3 % vocab))
    assert_equal_scores(theirs, reference(wide[1], targets, 3 % vocab))
    truth = reference_compare(*wide)
    np.testing.assert_allclose(forward, truth[0], atol=EPSILON, rtol=1e-6)
    np.testing.assert_allclose(backward, truth[1], atol=EPSILON, rtol=1e-6)
    for a, b in zip(mine, score(base, h_base, targets, 3 % vocab), strict=True):
        np.testing.assert_array_equal(a, b)  # beside another head or alone


@every_rung
def test_a_head_against_itself_diverges_by_nothing(rung: Rung) -> None:
    model, hidden = head(tied_weight(300, 20), threads=2, **rung.options), states(40, 20)
    mine, theirs, *divergences = compare(model, hidden, np.zeros(40, np.int32), model, hidden, 4)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(divergences)


@every_rung
def test_statistics_of_a_tile(rung: Rung) -> None:
    """Sums of one tile in fp32 against fp64, and exact counts."""
    rng = np.random.default_rng(4)
    for n in (32, 64, 256):
        z, other = rng.normal(size=(2, 50, n), scale=3).astype(np.float32)
        z[:, 5] = z[:, 1]
        target = z[:, 1].copy()
        largest, total, dot, cross, greater, equal, finite = _native.tile_statistics(
            z, other, target, **rung.options
        ).T
        wide = z.astype(np.float64)
        below = wide - wide.max(axis=1, keepdims=True)
        e, size = np.exp(below), np.exp(below) * np.abs(below)
        distance = wide - other
        np.testing.assert_array_equal(largest, z.max(axis=1))
        np.testing.assert_array_equal(greater, (z > target[:, None]).sum(axis=1))
        np.testing.assert_array_equal(equal, (z == target[:, None]).sum(axis=1))
        assert finite.all()
        np.testing.assert_allclose(total, e.sum(axis=1), rtol=1e-6)
        assert (np.abs(dot - (e * below).sum(axis=1)) <= 1e-6 * size.sum(axis=1)).all()
        scale = (e * np.abs(distance)).sum(axis=1)
        assert (np.abs(cross - (e * distance).sum(axis=1)) <= 1e-6 * scale).all()


@every_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tile_that_is_not_finite_says_so(rung: Rung, bad: float) -> None:
    """In every lane, first and last."""
    z = np.random.default_rng(5).normal(size=(64, 64)).astype(np.float32)
    z[np.arange(64), np.arange(64)] = bad
    finite = _native.tile_statistics(z, None, z[:, 0].copy(), **rung.options)[:, 6]
    assert not finite.any()


def exponentials(isa: str, x: F32) -> NDArray[np.float64]:
    """e^-x for x >= 0 by the instruction set's own routine, out of a tile's statistics: of logits
    [x, 0, 0 ...] against [x, -1, 0 ...] the sum of e^(z - largest) (z - other) is e^-x."""
    z = np.zeros((len(x), 32), np.float32)
    z[:, 0] = x
    other = z.copy()
    other[:, 1] = -1
    found = _native.tile_statistics(z, other, x, isa=isa, dtype="float32")
    return np.asarray(found[:, 3])


@every_isa
def test_the_exponential_is_within_1_25_units_in_the_last_place(isa: str) -> None:
    """From 0 to -87, where it stops at e^-87: never 0, never below the normal numbers. (Of
    positive arguments only the gated activation has any: test_silu_mul.)"""
    dense = np.linspace(0, 87, 150_000, dtype=np.float32)
    halves = np.arange(252, dtype=np.float32) * np.float32(np.log(2) / 2)  # its argument turns over
    small = np.ldexp(np.float32(1), -np.arange(1, 120)).astype(np.float32)
    edges = [np.nextafter(halves, np.float32(0)), halves, np.nextafter(halves, np.float32(99))]
    x = np.concatenate([dense, *(edge[edge <= 87] for edge in edges), small])
    truth = np.exp(-x.astype(np.float64))
    unit = np.spacing(truth.astype(np.float32)).astype(np.float64)
    error = np.abs(exponentials(isa, x) - truth) / unit
    assert error.max() <= 1.25, x[error.argmax()]
    far = np.array([87, 87.5, 88, 104, 1e3, 1e30, 3e38], np.float32)
    floor = exponentials(isa, far)
    assert (floor == floor[0]).all() and abs(floor[0] / np.exp(-87.0) - 1) < 2.0**-22
    assert exponentials(isa, np.zeros(1, np.float32)) == 1


def test_bad_shapes_are_refused_and_leave_the_head_usable() -> None:
    model, hidden = head(tied_weight(40, 6), threads=2, **RUNGS[-1].options), states(3, 6)
    targets = np.array([0, 39, 5], np.int32)
    good = score(model, hidden, targets, 2)
    for arguments, message in [
        ((hidden[:, :5].copy(), targets, 2), r"must be \[M, C\]"),
        ((hidden, targets[:2].copy(), 2), "one target"),
        ((hidden, targets + 1, 2), "target outside"),
        ((hidden, targets - 1, 2), "target outside"),
        ((hidden, targets, 41), "top_k outside"),
        ((hidden, targets, -1), "negative dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            score(model, *arguments)
        for a, b in zip(score(model, hidden, targets, 2), good, strict=True):
            np.testing.assert_array_equal(a, b)
    other = head(tied_weight(41, 6), **RUNGS[-1].options)
    with pytest.raises(ValueError, match="same vocabulary"):
        compare(model, hidden, targets, other, hidden)
    z = np.zeros((1, 33), np.float32)
    with pytest.raises(ValueError, match="32"):
        _native.tile_statistics(z, None, z[:, 0].copy(), **RUNGS[-1].options)
    assert score(model, hidden[:0], targets[:0]).rank.shape == (0,)
