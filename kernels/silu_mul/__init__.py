"""The gated activation of the feed-forward. Enters gate [T, F] and up [T, F]; leaves [T, F].

The naive one-liner is `gate / (1 + exp(-gate)) * up` (SwiGLU, arXiv 2002.05202).
"""

from .reference import silu_mul as reference

__all__ = ["reference"]
