"""Times rotation together with the write of keys and values into their blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, main, native_rungs, normal, timed
from urial_engine.kernels.rope import reference
from urial_engine.kernels.rope.native import Cache

HEADS, KV_HEADS, SIZE = 9, 3, 64


@pytest.mark.parametrize("rows", [1, 256])
@native_rungs
def test_rope(benchmark: Any, rung: Rung, rows: int) -> None:
    """Rows of one sequence, from position 0."""
    rows = min(rows, 3) if benchmark.disabled else rows
    blocks = -(-rows // 64)
    cache = Cache(heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, blocks=blocks, **rung.options)
    qkv = normal(rows, (HEADS + 2 * KV_HEADS) * SIZE)
    angle = normal(rows, SIZE // 2)
    cos, sin = np.cos(angle), np.sin(angle)
    positions = np.arange(rows, dtype=np.int32)
    at = (positions, positions * 0, np.arange(blocks, dtype=np.int32)[None])
    operations = 3.0 * rows * (HEADS + KV_HEADS) * SIZE
    q, bad = timed(
        benchmark, rung, lambda: cache.rope(qkv, cos, sin, *at), operations=operations,
        read=qkv.nbytes,
    )  # fmt: skip
    assert bad == -1
    truth = reference(qkv[:, : HEADS * SIZE].reshape(rows, HEADS, SIZE), cos, sin)
    np.testing.assert_allclose(q, truth, rtol=2.0**-8)


if __name__ == "__main__":
    raise SystemExit(main(__file__))
