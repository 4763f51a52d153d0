"""Root-mean-square norm: enters x [T, C] and weight [C], leaves [T, C] in their dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rmsnorm(x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
    """x [T, C], weight [C] -> [T, C]."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # [T, 1]
    normed: NDArray[Any] = weight * (x / np.sqrt(mean_square + epsilon))
    return normed
