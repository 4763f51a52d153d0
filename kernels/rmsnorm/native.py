"""The norm on a rung of the native backend: `rmsnorm(x, weight, epsilon, isa=, dtype=)`.

Enters x [T, C] and weight [C] in fp32; leaves `reference` twice, as fp32 [T, C] and rounded as the
rung's next layer reads it, and the first row that is not finite, or -1.
"""

from urial_engine._native import rmsnorm

__all__ = ["rmsnorm"]
