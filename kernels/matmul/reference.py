"""A linear layer: enters x [M, K] and weight [N, K], leaves y [M, N] in the dtype of its inputs."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def matmul(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """x [M, K], weight [N, K], bias [N] or None -> [M, N]."""
    y: NDArray[Any] = x @ weight.T  # [M, N]
    return y if bias is None else y + bias
