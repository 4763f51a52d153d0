"""The linear layer on a rung of the native backend: `Linear(weight, bias, ...)(x, residual)`.

Enters x [M, K] and residual [M, N] or None; leaves `reference(x, weight, bias)`, plus the residual,
in fp32. The weight is packed once, in the dtype of the rung. Gated, its rows are those of a gate,
then those of what it gates, and [M, N / 2] leaves: see `silu_mul`.
"""

from urial_engine._native import Linear

__all__ = ["Linear"]
