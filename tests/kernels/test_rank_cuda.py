"""The CUDA kernels of scoring, on this CPU (tools/emulate.py), against the reference. Each batch
runs its threads in another order."""

from __future__ import annotations

import numpy as np
import pytest

from tools import emulate
from urial_engine.kernels.rank import compare, reference

from .emulated import TILE, Head, call, filled, thread_order, walk
from .rungs import F32
from .test_rank import EPSILON, assert_equal_scores

VOCABULARIES = [1, 2, 3, 31, 100, 1023, 1024, 1025, 2047, 2048, 2049, 3000, 4100, 5000]
SHAPES = 14  # of a batch
batches = pytest.mark.parametrize("batch", range(16), ids="batch{}".format)
orders = pytest.mark.parametrize("order", emulate.ORDERS, ids="order{}".format)


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> F32:
    """Mild, tied, peaked, equal, far apart, huge, tiny; rows repeat."""
    z = rng.normal(size=(rows, vocab))
    peaked = z.copy()
    peaked[np.arange(rows), rng.integers(vocab, size=rows)] = 40
    kinds = [z * 3, np.round(z * 2), peaked, z * 0 - 7, z * 1e4, z * 1e37, z * 1e-30, z + 1000]
    chosen = np.where(rng.random((rows, 1)) < 0.5, kinds[0], kinds[rng.integers(len(kinds))])
    chosen[rows // 2] = chosen[0]
    return chosen.astype(np.float32)


def random_case(rng: np.random.Generator, heads: int = 1) -> list[Head]:
    rows, vocab = int(rng.integers(1, 12)), int(rng.choice(VOCABULARIES))
    rows = 40 if rng.random() < 0.1 else rows
    k = min(vocab, int(rng.choice([0, 1, 5, 32, 33, 70])))
    if vocab <= TILE and rng.random() < 0.2:
        k, rows = vocab, 2
    targets = rng.integers(vocab, size=rows).astype(np.int32)
    targets[0] = vocab - 1
    # Logits of 1e37 leave no digits of the difference between two heads.
    limit = 1e38 if heads == 1 else 1e5
    zs = [random_logits(rng, rows, vocab).clip(-limit, limit) for _ in range(heads)]
    return [Head(z, targets, k) for z in zs]


@batches
def test_every_number_is_the_references(batch: int) -> None:
    rng = np.random.default_rng([1, batch])
    for _ in range(SHAPES):
        (head,) = random_case(rng)
        with thread_order(batch):
            assert walk([head], int(rng.integers(1, 5))) == [0]
        truth = reference(head.z.astype(np.float64), head.targets, head.k)
        assert_equal_scores(head.scores, truth)
        assert head.out["finite"].all()
        np.testing.assert_array_equal(head.seen, head.target_logit)


@batches
def test_two_heads(batch: int) -> None:
    rng = np.random.default_rng([2, batch])
    for _ in range(SHAPES // 3):
        heads = random_case(rng, 2)
        shift = rng.normal(size=heads[0].z.shape).astype(np.float32)
        if np.abs(heads[0].z).max() < 100:  # else the two have nothing in common
            heads[1].z = heads[0].z + shift
            heads[1].target_logit = heads[1].z[np.arange(len(shift)), heads[1].targets]
        with thread_order(batch):
            assert walk(heads, int(rng.integers(1, 5))) == [0, 0]
        wide = [head.z.astype(np.float64) for head in heads]
        backward, forward = compare(*wide)  # KL(1 || 0), KL(0 || 1)
        for head, z, kl in zip(heads, wide, (forward, backward), strict=True):
            assert_equal_scores(head.scores, reference(z, head.targets, head.k))
            # Of logits far from 0 the difference of the two heads' has few digits left.
            far = 2.0**-22 * max(np.abs(w).max() for w in wide)
            np.testing.assert_allclose(head.out["kl"], kl, atol=EPSILON + far, rtol=1e-6)


def test_a_head_against_itself_diverges_by_nothing() -> None:
    rng = np.random.default_rng(3)
    heads = random_case(rng) * 2
    heads[1] = Head(heads[0].z, heads[0].targets, heads[0].k)
    walk(heads, 2)
    assert not heads[0].out["kl"].any() and not heads[1].out["kl"].any()


@orders
def test_bits_depend_on_nothing_but_the_row(order: int) -> None:
    """Neither on blocks, nor on other rows, nor on the order of threads."""
    rng = np.random.default_rng(4)
    for _ in range(4):
        (whole,) = random_case(rng)
        walk([whole], 9)
        rows = rng.permutation(len(whole.z))[:3]
        part = Head(whole.z[rows], whole.targets[rows], whole.k)
        with thread_order(order):
            walk([part], 1)
        for name, values in part.out.items():
            np.testing.assert_array_equal(values, whole.out[name][rows], err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_says_so(bad: float) -> None:
    """Wherever the value stands, and no other row suffers."""
    z = random_logits(np.random.default_rng(5), 33, 2100)
    for row, column in enumerate(np.linspace(0, 2099, 32).astype(int)):
        z[row, column] = bad
    head = Head(z, np.arange(33, dtype=np.int32), 4)
    walk([head], 2)
    assert head.out["finite"].tolist() == [0] * 32 + [1]
    truth = reference(z[32:].astype(np.float64), head.targets[32:], 4)
    np.testing.assert_array_equal(head.out["top_ids"][32:], truth.top_ids)
    assert head.out["rank"][32] == truth.rank[0]


def test_what_pads_a_tile_is_no_competitor() -> None:
    z = np.full((3, 1030), np.finfo(np.float32).min, np.float32)
    z[1, 7], z[2, 1029] = 0, -3e38
    targets = np.array([5, 1029, 1029], np.int32)
    head = Head(z, targets, 1030)
    walk([head], 1)
    truth = reference(z.astype(np.float64), targets, 1030)
    assert_equal_scores(head.scores, truth, epsilon=1e-3)


def test_another_target_logit_is_counted_and_the_second_run_is_exact() -> None:
    rng = np.random.default_rng(6)
    z = random_logits(rng, 9, 2500)
    targets = rng.integers(2500, size=9).astype(np.int32)
    logit = z[np.arange(9), targets]
    logit[[2, 7]] = np.nextafter(logit[[2, 7]], np.float32(np.inf))
    first = Head(z, targets, 3, target_logit=logit)
    assert walk([first], 2) == [2]
    second = Head(z, targets, 3, target_logit=first.seen)
    assert walk([second], 2) == [0]
    assert_equal_scores(second.scores, reference(z.astype(np.float64), targets, 3))


def test_the_diagonal() -> None:
    z = np.random.default_rng(7).normal(size=(300, 304)).astype(np.float32)
    out = filled(300)
    call("take_logits", z=z, out=out, rows=300, stride=304)
    np.testing.assert_array_equal(out, np.diagonal(z)[:300])


def test_bad_arguments_are_refused() -> None:
    head = Head(np.zeros((2, 2048), np.float32), np.zeros(2, np.int32), 2)
    z = head.z
    size = {"rows": 2, "columns": 2048, "stride": 2048, "first": 0, "vocab": 2048}
    read = {"targets": head.targets, "target_logit": head.target_logit, "stats": head.stats}
    for wrong, message in [
        ({"columns": 1000}, "whole tiles"),
        ({"first": 512, "columns": 1024}, "whole tiles"),
        ({"first": 1024}, "whole tiles"),
        ({"stride": 1024}, "whole tiles"),
        ({"stride": 2050}, "multiple of 4"),
        ({"z": z.ctypes.data + 4}, "aligned"),
        ({"other": z.ctypes.data + 4}, "aligned"),
        ({"stats": 0}, "stats is missing"),
        ({"rows": 2**31}, "rows is not a size"),
        ({"widht": 3}, "does not know"),
    ]:
        with pytest.raises(ValueError, match=message):
            call("rank_tile", **({"z": z} | size | read | wrong))
    with pytest.raises(ValueError, match="entries is missing"):
        call("top_k_tile", z=z, stats=head.stats, k=1, **size)
    with pytest.raises(ValueError, match="k must be within"):
        call("rank_finish", **read, **head.out, rows=2, vocab=2048, k=2049)
    call("rank_tile", z=0, targets=0, target_logit=0, stats=0, **(size | {"rows": 0}))
