"""Times attention over the blocks of the cache: a prefill, a token of one sequence, and a token of
32 sequences that share a prefix, beside the same sequences with a copy of it each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, main, native_rungs, normal, timed
from urial_engine.kernels.attention import reference
from urial_engine.kernels.attention.native import Cache

HEADS, KV_HEADS, SIZE, BLOCK = 9, 3, 64, 64
# Name: sequences, new rows of each, whether they share all blocks but the last.
CASES = {
    "prefill": (1, 256, False),
    "decode": (1, 1, False),
    "decode 32 sharing": (32, 1, True),
    "decode 32 apart": (32, 1, False),
}


@pytest.mark.parametrize("case", CASES)
@native_rungs
def test_attention(benchmark: Any, rung: Rung, case: str) -> None:
    """The last rows of 1,024 positions, 9 query and 3 key heads of 64."""
    sequences, rows, shared = CASES[case]
    length = 128 if benchmark.disabled else 1024
    rows = min(rows, length)
    blocks, count = length // BLOCK, sequences * (length // BLOCK)
    cache = Cache(heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, blocks=count, **rung.options)
    tables = np.arange(count, dtype=np.int32).reshape(sequences, blocks)
    if shared:
        tables[:, :-1] = tables[0, :-1]
    qkv = normal(length, HEADS + 2 * KV_HEADS, SIZE)
    one = np.ones((length, SIZE // 2), np.float32)
    everywhere = np.arange(length, dtype=np.int32)
    for table in tables:
        cache.rope(qkv.reshape(length, -1), one, one * 0, everywhere, everywhere * 0, table[None])
    positions = np.tile(everywhere[-rows:], sequences)
    owner = np.repeat(np.arange(sequences, dtype=np.int32), rows)
    q = normal(len(positions), HEADS, SIZE)
    out = timed(
        benchmark, rung, lambda: cache.attend(q, positions, owner, tables),
        operations=4.0 * HEADS * SIZE * float((positions + 1).sum()),
        read=2.0 * rung.item * KV_HEADS * SIZE * BLOCK * len(np.unique(tables)),
    )  # fmt: skip
    k, v = qkv[:, HEADS : HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS :]
    assert np.abs(out[-1:] - reference(q[-1:], k, v, positions[-1:])).max() < 0.05


if __name__ == "__main__":
    raise SystemExit(main(__file__))
