"""Causal attention: enters queries and a sequence's keys and values, leaves what each row reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def attention(
    queries: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    positions: NDArray[Any],
    sliding_window: int | None = None,
) -> NDArray[Any]:
    """queries [T, H, D], keys and values [S, K, D], positions [T] all < S -> [T, H, D]."""
    group = queries.shape[1] // keys.shape[1]  # query heads a key head
    q = queries.transpose(1, 0, 2)  # [H, T, D]
    k = np.repeat(keys.transpose(1, 2, 0), group, axis=0)  # [H, D, S]
    v = np.repeat(values.transpose(1, 0, 2), group, axis=0)  # [H, S, D]
    distance = positions[:, None] - np.arange(keys.shape[0])  # [T, S]
    visible = distance >= 0
    if sliding_window is not None:
        visible &= distance < sliding_window
    scores = np.where(visible, (q @ k) * queries.shape[-1] ** -0.5, -np.inf)  # [H, T, S]
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weighted: NDArray[Any] = (p / p.sum(axis=-1, keepdims=True)) @ v  # [H, T, D]
    return weighted.transpose(1, 0, 2)
