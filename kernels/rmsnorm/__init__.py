"""Root-mean-square norm over the last axis. Enters x [T, C], weight [C], epsilon; leaves [T, C].

The naive one-liner is `weight * x / sqrt(mean(x * x, -1) + epsilon)`: no mean is subtracted, and
epsilon stands under the root (arXiv 1910.07467, as Llama uses it).
"""

from .reference import rmsnorm as reference

__all__ = ["reference"]
