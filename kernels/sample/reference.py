"""The sampler on one row of logits, and its counter-based random numbers: see the package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import float32 as f32
from numpy.typing import ArrayLike, NDArray

MASK = 0xFFFFFFFF


def philox4x32(key: Sequence[int], counter: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32 with 10 rounds: key of 2 words, counter of 4 words -> 4 words of 32 bits."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64 bits each
        c0, c2 = (product1 >> 32) ^ c1 ^ k0, (product0 >> 32) ^ c3 ^ k1
        c1, c3 = product1 & MASK, product0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniform(seed: int, sample: int, position: int) -> float:
    """A number strictly between 0 and 1, a pure function of its three arguments."""
    word = philox4x32((seed & MASK, seed >> 32), (position, sample, 0, 0))[0]
    return (word + 0.5) * 2.0**-32


@np.errstate(over="ignore")  # a temperature too small is caught below
def sample(
    logits: NDArray[np.float32],  # [V]
    u: float,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    penalty_ids: ArrayLike = (),
    penalty_repeats: ArrayLike = (),
    penalty_counts: ArrayLike = (),
    banned_ids: ArrayLike = (),
) -> int:
    """The id chosen. ValueError where the largest score is not finite (all banned, a NaN, +inf)."""
    z = np.array(logits, dtype=np.float32)
    z[np.asarray(banned_ids, dtype=np.int64)] = -np.inf
    ids = np.asarray(penalty_ids, dtype=np.int64)
    counts = np.asarray(penalty_counts, dtype=np.float32)
    penalty = np.where(np.asarray(penalty_repeats, dtype=bool), f32(repetition_penalty), f32(1))
    z[ids] = np.where(z[ids] > 0, z[ids] / penalty, z[ids] * penalty)
    z[ids] -= f32(frequency_penalty) * counts + f32(presence_penalty) * (counts > 0)
    if temperature != 0:
        z = z / f32(temperature)
    if not np.isfinite(z.max()):
        raise ValueError(f"no finite score to choose from: the largest of {z.size} is {z.max()}")
    if temperature == 0:
        return int(np.argmax(z))
    order = np.argsort(-z, kind="stable")[: int(top_k) or None]
    p = np.exp(z[order].astype(np.float64) - np.float64(z[order[0]]))  # p[0] = 1 is the largest
    p = p[: np.searchsorted(np.cumsum(p), f32(top_p) * np.cumsum(p)[-1]) + 1]
    p = p[p >= f32(min_p)]
    running = np.cumsum(p)
    return int(order[np.searchsorted(running, u * running[-1], side="right")])
