"""Causal attention of new rows over one sequence's cache, grouped heads, optional sliding window.

Enters queries [T, H, D], keys and values [S, K, D] (row j is position j), positions [T]; leaves
[T, H, D]. The naive one-liner, a row and head, is
`softmax(q @ k[visible].T / sqrt(D)) @ v[visible]`. Query head h reads key head h // (H / K).
Key j is visible to position i where j <= i and, under a window w, i - j < w: a position sees itself
and the w - 1 before it. What is not visible changes nothing, so long as it is finite.
"""

from .reference import attention as reference

__all__ = ["reference"]
