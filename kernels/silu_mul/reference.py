"""The gated activation: enters gate and up [T, F], leaves [T, F] in their dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def silu_mul(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
    """gate [T, F], up [T, F] -> [T, F]."""
    with np.errstate(over="ignore"):  # exp(-gate) may reach inf: gate / inf = 0 is the limit
        activated: NDArray[Any] = gate / (1 + np.exp(-gate)) * up
    return activated
