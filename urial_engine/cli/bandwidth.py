"""How fast this machine reads memory: threads go in, bytes a second come out."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SECONDS = 0.4


def read_bandwidth(threads: int, size: int) -> float:
    """Bytes a second at which `threads` threads read the same `size` bytes over and over.

    The best of several whole passes. The size should be that of the work this is compared with:
    a cache may hold a part of it, for the one as for the other.
    """
    data = np.empty(max(size // 8, threads), np.uint64)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(1), parts))  # only now there is memory behind it
        end = time.perf_counter() + SECONDS
        while best == 0 or time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # numpy lets go of the interpreter here
            best = max(best, data.nbytes / (time.perf_counter() - start))
    return best
