"""Rotation on a rung of the native backend, where it writes the KV-cache: `Cache.rope`.

Enters qkv [T, (H + 2 K) D] of rows at positions, and tables cos and sin [positions, D / 2]; leaves
the queries as attention reads them, `reference(q, cos[positions], sin[positions])`, and in the
cache the keys turned likewise and the values as they are, both in the dtype of the rung.
"""

from urial_engine._native import Cache

__all__ = ["Cache"]
