"""The gated activation on a rung of the native backend, where it is the end of a linear layer.

Enters x [T, C] and the weights [F, C] of gate and up; leaves what the rung's next layer reads of
`reference(x @ gate.T, x @ up.T)`, [T, F] in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from urial_engine._native import Linear


def gated(gate: NDArray[Any], up: NDArray[Any], **rung: Any) -> Linear:
    """gate and up [F, C] -> a layer [T, C] -> [T, F]. `rung`: isa, dtype and threads."""
    return Linear(np.concatenate([gate, up]), gated=True, **rung)
