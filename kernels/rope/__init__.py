"""Rotary position embedding. Enters x [T, H, D], cos and sin [T, D/2]; leaves [T, H, D].

The naive one-liner is `concat(a * cos - b * sin, b * cos + a * sin)` with a, b the first and the
second half of the last axis: dimension d turns with dimension d + D/2, as Hugging Face checkpoints
lay out their weights (arXiv 2104.09864 pairs neighbours instead). Row t of the tables holds the
angles of row t of x.
"""

from .reference import rope as reference

__all__ = ["reference"]
