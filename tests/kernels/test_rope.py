"""Rotation on every rung, with what it leaves in the blocks of the cache."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine.kernels.rope import reference
from urial_engine.kernels.rope.native import Cache

from .rungs import F32, RUNGS, Rung, assert_no_worse, every_rung

BLOCK, PANEL = 64, 32
POSITIONS = 200
HEADS = [(1, 1, 2), (3, 1, 6), (4, 2, 32), (6, 3, 34), (2, 2, 64), (2, 1, 130), (1, 1, 256)]


def tables(half: int) -> tuple[F32, F32]:
    angle = np.outer(np.arange(POSITIONS), 10000.0 ** -(np.arange(half) / half))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def int32(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def keys_and_values(rung: Rung, cache: Cache, block: int, heads: int, size: int) -> tuple[F32, F32]:
    """A block of the cache as [64, K, D] twice, by the layout that csrc/cpu/types.h describes.

    A head's keys are a packed matrix of 64 columns (the tokens) by D; its values one of D columns
    by 64. Packed: panels of 32 columns, then pairs of k (one k in fp32), then columns, then the
    pair.
    """
    step = 2 if rung.dtype == "bfloat16" else 1
    dtype = ml_dtypes.bfloat16 if step == 2 else np.float32
    padded = -(-size // PANEL) * PANEL
    raw = cache.read_block(block).view(dtype).astype(np.float32).reshape(heads, 2, -1)
    keys = raw[:, 0].reshape(heads, BLOCK // PANEL, padded // step, PANEL, step)
    values = raw[:, 1].reshape(heads, padded // PANEL, BLOCK // step, PANEL, step)
    k = keys.transpose(1, 3, 0, 2, 4).reshape(BLOCK, heads, padded)
    v = values.transpose(2, 4, 0, 1, 3).reshape(BLOCK, heads, padded)
    assert not k[..., size:].any() and not v[..., size:].any()  # padding
    return k[..., :size], v[..., :size]


@every_rung
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
def test_queries_and_cache(rung: Rung, heads: int, kv_heads: int, size: int) -> None:
    rng = np.random.default_rng(size)
    positions = int32(0, 1, 31, 32, 63, 64, 127, 128, 199)
    rows = len(positions)
    qkv = rng.normal(size=(rows, heads + 2 * kv_heads, size)).astype(np.float32)
    qkv[2] *= np.float32(1e4)
    q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
    cache = Cache(
        heads=heads, kv_heads=kv_heads, head_dim=size, blocks=5, threads=2, **rung.options
    )
    table = int32(3, 0, 4, 1)
    cos, sin = tables(size // 2)
    turned, bad = cache.rope(
        qkv.reshape(rows, -1), cos, sin, positions, np.zeros_like(positions), table[None]
    )
    assert bad == -1
    angles = cos[positions], sin[positions]
    # The same operations in the same order as the fp32 reference: not one bit may differ.
    np.testing.assert_array_equal(turned, rung.read(reference(q, *angles)))
    blocks = [keys_and_values(rung, cache, int(b), kv_heads, size) for b in table]
    keys, values = (np.concatenate(part) for part in zip(*blocks, strict=True))
    np.testing.assert_array_equal(keys[positions], rung.stored(reference(k, *angles)))
    np.testing.assert_array_equal(values[positions], rung.stored(v))
    untouched = np.delete(np.arange(len(keys)), positions)
    assert not keys[untouched].any() and not values[untouched].any()
    assert not cache.read_block(2).any()
    truth = reference(q.astype(np.float64), *angles)
    length = np.sqrt(np.sum(np.square(np.split(truth, 2, axis=-1)), axis=0))  # of each turned pair
    scale, naive = np.concatenate([length, length], axis=-1), rung.read(reference(q, *angles))
    assert_no_worse(turned, naive, truth, scale, factor=1.0, epsilon=2.0**-23)


@every_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.3e38])
@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_a_row_that_is_not_finite_is_named_and_leaves_zeros(
    rung: Rung, bad: float, place: str
) -> None:
    """3.3e38 too: turning it, or rounding it to bf16, could leave the range."""
    heads, kv_heads, size = 2, 1, 8
    qkv = np.ones((5, 4 * size), np.float32)
    at = {"query": 3, "key": heads * size + 5, "value": 3 * size + 7}[place]
    qkv[1, at], qkv[3, at] = bad, bad
    cache = Cache(heads=heads, kv_heads=kv_heads, head_dim=size, blocks=1, **rung.options)
    positions = int32(0, 1, 2, 3, 4)
    args = (positions, np.zeros_like(positions), int32(0)[None])
    full = cache.rope(np.ones_like(qkv), *tables(size // 2), *args)
    assert full[1] == -1
    _, row = cache.rope(qkv, *tables(size // 2), *args)
    assert row == 1
    keys, values = keys_and_values(rung, cache, 0, kv_heads, size)
    assert np.isfinite(keys).all() and np.isfinite(values).all()
    for part in (keys, values):
        assert not part[[1, 3]].any() and part[[0, 2, 4]].any(axis=(1, 2)).all()


def test_bad_shapes_are_refused_and_leave_the_cache_usable() -> None:
    cache = Cache(heads=2, kv_heads=1, head_dim=4, blocks=2, threads=2, **RUNGS[-1].options)
    cos, sin = tables(2)
    qkv, row, table = np.ones((1, 16), np.float32), int32(0), int32(0, 1)[None]
    good = cache.rope(qkv, cos, sin, row, row, table)[0]
    wrong = [
        (qkv[:, :15].copy(), cos, row, row, table, "qkv must be"),
        (qkv, cos[:, :1].copy(), row, row, table, "rotary tables"),
        (qkv, cos, int32(128), row, table, "block table"),
        (qkv, cos, int32(-1), row, table, "outside the context"),
        (qkv, cos, row, int32(1), table, "sequence outside"),
        (qkv, cos, row, row, int32(2, 0)[None], "block outside the pool"),
        (qkv, cos, row, row, int32(-1, 0)[None], "block outside the pool"),
        (qkv, cos, row, int32(0, 0), table, "T positions and sequences"),
    ]
    for x, c, positions, sequences, blocks, message in wrong:
        with pytest.raises(ValueError, match=message):
            cache.rope(x, c, sin if c is cos else c, positions, sequences, blocks)
        np.testing.assert_array_equal(cache.rope(qkv, cos, sin, row, row, table)[0], good)


def test_every_row_of_a_sequence_has_its_block_checked() -> None:
    """The second row's own block lies outside the pool; the first row's does not."""
    cache = Cache(heads=1, kv_heads=1, head_dim=4, blocks=2, **RUNGS[-1].options)
    qkv, zero = np.ones((2, 12), np.float32), int32(0, 0)
    for table in (int32(0, 2), int32(1, -1)):
        with pytest.raises(ValueError, match="block outside the pool"):
            cache.rope(qkv, *tables(2), int32(63, 64), zero, table[None])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "message"),
    [
        (3, 2, 4, "multiple of kv_heads"),
        (129, 1, 4, "128 times"),
        (1, 1, 5, "even"),
        (1, 1, 258, "at most 256"),
    ],
)
def test_impossible_caches_are_refused(heads: int, kv_heads: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cache(heads=heads, kv_heads=kv_heads, head_dim=size, blocks=1, **RUNGS[-1].options)
