"""An attention problem, run on a rung and judged by the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from urial_engine.kernels.attention import reference
from urial_engine.kernels.attention.native import Cache

from .rungs import F32, Rung, assert_no_worse

I32 = NDArray[np.int32]
BLOCK = 64
EPSILON = 2.0**-21  # of the mean of |v| that a row reads
ROUNDED = 2.0**-10  # where probabilities and the result are rounded to bf16, each up to 2^-8


@dataclass
class Case:
    """Queries [T, H, D] at positions of one sequence, its keys and values [S, K, D]."""

    q: F32
    k: F32
    v: F32
    positions: I32
    window: int = 0

    @classmethod
    def random(cls, shape: tuple[int, int, int], length: int, window: int = 0) -> Case:
        heads, kv_heads, size = shape
        rng = np.random.default_rng([*shape, length])
        q, k, v = (
            rng.normal(size=(length, n, size)).astype(np.float32)
            for n in (heads, kv_heads, kv_heads)
        )
        return cls(q, k, v, np.arange(length, dtype=np.int32), window)

    def cache(self, rung: Rung, blocks: int, threads: int = 1) -> Cache:
        (_, heads, size), kv_heads = self.q.shape, self.k.shape[1]
        return Cache(
            heads=heads, kv_heads=kv_heads, head_dim=size, window=self.window, blocks=blocks,
            threads=threads, **rung.options,
        )  # fmt: skip

    def write(self, cache: Cache, table: list[int], begin: int = 0, end: int | None = None) -> None:
        """Keys and values of positions [begin, end), unturned: cos 1, sin 0."""
        k, v = self.k[begin:end], self.v[begin:end]
        q = np.zeros((len(k), *self.q.shape[1:]), np.float32)
        qkv = np.concatenate([q, k, v], axis=1).reshape(len(k), -1)
        one = np.ones((begin + len(k), self.q.shape[2] // 2), np.float32)
        positions = np.arange(begin, begin + len(k), dtype=np.int32)
        _, bad = cache.rope(
            qkv, one, one * 0, positions, positions * 0, np.array([table], np.int32)
        )
        assert bad == -1

    def run(self, rung: Rung, threads: int = 1, tile_queries: int = 48, parts: int = 0) -> F32:
        """All rows in one call, over blocks in an order that is not theirs."""
        blocks = -(-len(self.k) // BLOCK)
        table = list(range(blocks))[::-1]
        cache = self.cache(rung, blocks, threads)
        self.write(cache, table)
        rows = np.zeros_like(self.positions)
        tables = np.array([table], np.int32)
        return cache.attend(self.q, self.positions, rows, tables, tile_queries, parts)

    def assert_matches(self, rung: Rung) -> None:
        q, k, v = rung.read(self.q), rung.stored(self.k), rung.stored(self.v)
        window = self.window or None
        wide_q, wide_k, wide_v = (a.astype(np.float64) for a in (q, k, v))
        truth = reference(wide_q, wide_k, wide_v, self.positions, window)
        scale = reference(wide_q, wide_k, np.abs(wide_v), self.positions, window) + 1e-30
        naive = naively(rung, q, k, v, self.positions, window)
        epsilon = ROUNDED if rung.rounds_activations else EPSILON
        assert_no_worse(self.run(rung), naive, truth, scale, epsilon=epsilon)


def attend(
    cache: Cache,
    q: F32,
    positions: I32,
    tables: list[list[int]],
    sequences: I32 | None = None,
    tile_queries: int = 48,
) -> F32:
    rows = np.zeros_like(positions) if sequences is None else sequences
    return cache.attend(q, positions, rows, np.array(tables, np.int32), tile_queries)


def naively(rung: Rung, q: F32, k: F32, v: F32, positions: I32, window: int | None) -> F32:
    """The reference in fp32; where the rung rounds activations, with probabilities rounded before
    they are multiplied with the values, as any implementation in bf16 does, and the result after.

    Values of one and of every basis vector turn the reference into its own probabilities.
    """
    if not rung.rounds_activations:
        return np.asarray(reference(q, k, v, positions, window))
    basis = np.repeat(np.eye(len(k), dtype=np.float32)[:, None], k.shape[1], axis=1)  # [S, K, S]
    group = q.shape[1] // k.shape[1]
    p = rung.read(reference(q, k, basis, positions, window))  # [T, H, S]
    return rung.read(np.einsum("ths,shd->thd", p, np.repeat(v, group, axis=1)).astype(np.float32))
