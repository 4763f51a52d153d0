"""Attention on a rung of the native backend, over blocks of 64 tokens: `Cache.attend`.

Enters queries [T, H, D] of rows at positions, each of a sequence whose block table says which block
of the pool holds its tokens 64 i .. 64 i + 63; leaves, in fp32, `reference` of each row over its
sequence's keys and values as the rung's next layer reads it. `kernels.rope` filled the blocks.
"""

from urial_engine._native import Cache

__all__ = ["Cache"]
