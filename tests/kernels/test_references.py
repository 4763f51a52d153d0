"""Each kernel's reference against the formula of its page, written another way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from urial_engine.kernels import attention, matmul, rank, rmsnorm, rope, silu_mul

RNG = np.random.default_rng(5)


def test_matmul() -> None:
    x, w, b = RNG.normal(size=(3, 5)), RNG.normal(size=(4, 5)), RNG.normal(size=4)
    loops = [[sum(x[m, k] * w[n, k] for k in range(5)) + b[n] for n in range(4)] for m in range(3)]
    np.testing.assert_allclose(matmul.reference(x, w, b), loops, rtol=1e-13)
    np.testing.assert_allclose(matmul.reference(x, w), loops - b, rtol=1e-13, atol=1e-13)


def test_rmsnorm() -> None:
    x, w = RNG.normal(size=(3, 7)), RNG.normal(size=7)
    loops = [[w[c] * r[c] / math.sqrt(sum(r * r) / 7 + 0.1) for c in range(7)] for r in x]
    np.testing.assert_allclose(rmsnorm.reference(x, w, 0.1), loops, rtol=1e-13)
    assert not rmsnorm.reference(np.zeros((1, 7)), w, 1e-6).any()


def test_rope_is_a_turn_in_the_plane_of_d_and_d_plus_half() -> None:
    x, angle = RNG.normal(size=(3, 2, 8)), RNG.normal(size=(3, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[:, None]
    both = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rope.reference(x, np.cos(angle), np.sin(angle)), both, rtol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_attention(window: int | None) -> None:
    q, k, v = (RNG.normal(size=s) for s in [(4, 6, 8), (9, 2, 8), (9, 2, 8)])
    positions = np.array([2, 3, 7, 8])
    out = attention.reference(q, k, v, positions, window)
    for t, i in enumerate(positions):
        seen = [j for j in range(9) if j <= i and (window is None or i - j < window)]
        assert len(seen) == (i + 1 if window is None else min(window, i + 1))
        for h in range(6):
            e = np.exp(k[seen, h // 3] @ q[t, h] / math.sqrt(8))
            np.testing.assert_allclose(out[t, h], e @ v[seen, h // 3] / e.sum(), rtol=1e-12)


def test_attention_survives_large_scores() -> None:
    q = np.full((1, 1, 4), 1e4)
    keys = np.array([1.0, 3.0, 2.0])[:, None, None] * np.ones((3, 1, 4))
    out = attention.reference(q, keys, keys, np.array([2]))
    np.testing.assert_array_equal(out, np.full((1, 1, 4), 3.0))


def test_silu_mul() -> None:
    gate, up = np.array([[-1e4, -1.0, 0.0, 2.0, 1e4]]), np.array([[3.0, 3, 3, 3, 3]])
    sigmoid = [0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1]
    np.testing.assert_allclose(silu_mul.reference(gate, up), gate * sigmoid * 3, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_references_keep_the_dtype_they_are_given(dtype: type[np.floating[Any]]) -> None:
    x, w = RNG.normal(size=(3, 2, 4)).astype(dtype), RNG.normal(size=(4, 4)).astype(dtype)
    flat, angle = x[:, 0], np.zeros((3, 2), np.float32)
    scores = rank.reference(flat, np.zeros(3, np.int32), 2)
    assert {
        matmul.reference(flat, w, w[0]).dtype,
        rmsnorm.reference(flat, w[0], 1e-6).dtype,
        rope.reference(x, angle, angle).dtype,
        attention.reference(x, x, x, np.arange(3)).dtype,
        silu_mul.reference(flat, flat).dtype,
        *(scores.logprob.dtype, scores.entropy.dtype, scores.top_logprobs.dtype),
        *(kl.dtype for kl in rank.compare(flat, flat)),
    } == {np.dtype(dtype)}


def test_rank_by_hand() -> None:
    z = np.array([[1.0, 3, 2, 3, 3], [0, 0, 0, 0, 0], [-np.inf, 1, 1, -np.inf, 5]])
    s = rank.reference(z, np.array([3, 0, 3]), 4)
    assert (s.rank.tolist(), s.ties.tolist()) == ([1, 1, 4], [2, 4, 1])
    assert s.top_ids.tolist() == [[1, 3, 4, 2], [0, 1, 2, 3], [4, 1, 2, 0]]
    total = 1 + 2 * math.exp(-4)
    p, e = 1 / total, math.exp(-4) / total
    assert s.entropy[1:] == pytest.approx([math.log(5), -p * math.log(p) - 2 * e * math.log(e)])
    assert s.logprob[1:].tolist() == pytest.approx([-math.log(5), -math.inf])
    assert rank.reference(z, np.array([3, 0, 3])).top_ids.shape == (3, 0)


@pytest.mark.parametrize("bad", [[1, np.nan], [np.inf, 1], [-np.inf, -np.inf]])
def test_a_row_without_a_softmax_has_no_rank(bad: list[float]) -> None:
    z = np.array([[0.0, 1.0], bad])
    with pytest.raises(ValueError, match="row 1"):
        rank.reference(z, np.array([0, 0]))
    with pytest.raises(ValueError, match="row 1"):
        rank.compare(np.zeros((2, 2)), z)


def test_compare_where_one_head_excludes_a_token() -> None:
    a, b = np.array([[0.0, 0.0, -np.inf]]), np.array([[0.0, 0.0, 0.0]])
    assert rank.compare(base=b, aligned=a)[0] == pytest.approx(math.log(1.5))
    assert rank.compare(base=b, aligned=a)[1] == math.inf
    assert rank.compare(a, a)[0] == 0
