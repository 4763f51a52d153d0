"""Rotary embedding: enters x [T, H, D], cos and sin [T, D/2], leaves x turned, in its dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rope(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any]) -> NDArray[Any]:
    """x [T, H, D], cos and sin [T, D/2] -> [T, H, D]. Keys are the same with K heads."""
    first, second = np.split(x, 2, axis=-1)  # [T, H, D/2] each
    c = cos[:, None, :].astype(x.dtype)  # [T, 1, D/2]
    s = sin[:, None, :].astype(x.dtype)  # [T, 1, D/2]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
