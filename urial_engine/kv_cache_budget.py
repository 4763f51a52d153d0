"""How much memory the KV-cache gets: GiB, or None, go in; a number of blocks comes out."""

from __future__ import annotations

import math

from .errors import CapacityError, ParameterError

GIB = 1 << 30


def cache_blocks(gib: float | None, *, block_bytes: int, most: int, room: int) -> int:
    """Blocks that fit in `gib`; by default in `room` bytes, and at most `most`.

    ParameterError for a budget that is not positive, CapacityError where not one block fits.
    """
    if gib is None:
        return max(min(room // block_bytes, most), 1)
    if not 0 < gib < math.inf:
        raise ParameterError(f"kv_cache_gib={gib!r}: must be a positive number of GiB")
    blocks = int(gib * GIB) // block_bytes
    if blocks == 0:
        raise CapacityError(
            f"kv_cache_gib={gib} does not hold one block of this model's cache "
            f"({block_bytes / GIB:.6f} GiB); raise it"
        )
    return blocks
