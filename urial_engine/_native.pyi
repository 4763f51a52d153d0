"""The native module as the type checker sees it: csrc/bindings.cpp documents what it holds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]

# Single operations, for tests and benchmarks: kernels/<op>/native.py says what each leaves.
class Linear:
    def __init__(
        self,
        weight: NDArray[Any],  # float32, float16, or bfloat16 as uint16
        bias: _F32 | None = None,
        *,
        gated: bool = False,
        dtype: str,
        isa: str,
        threads: int = 1,
    ) -> None: ...
    def __call__(self, x: _F32, residual: _F32 | None = None) -> _F32: ...

class Cache:
    def __init__(
        self,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int = 0,  # 0: none
        blocks: int,
        dtype: str,
        isa: str,
        threads: int = 1,
    ) -> None: ...
    def rope(
        self, qkv: _F32, cos: _F32, sin: _F32, positions: _I32, sequences: _I32, tables: _I32
    ) -> tuple[_F32, int]: ...
    def attend(
        self, q: _F32, positions: _I32, sequences: _I32, tables: _I32, tile_queries: int = 48
    ) -> _F32: ...
    def read_block(self, i: int) -> NDArray[np.uint8]: ...

# Bytes of the packed matrix; row i becomes column offset + i // run * stride + i % run of n.
def pack(
    weight: NDArray[Any], *, n: int, offset: int = 0, run: int = ..., stride: int = ..., dtype: str
) -> NDArray[np.uint8]: ...
def rmsnorm(
    x: _F32, weight: _F32, epsilon: float, *, dtype: str, isa: str
) -> tuple[_F32, _F32, int]: ...

# Columns: largest, sum of e = exp(z - largest), of e (z - largest), of e (z - other), how many are
# above and equal to z_y, whether all are finite.
def tile_statistics(
    z: _F32, other: _F32 | None, z_y: _F32, *, dtype: str, isa: str
) -> NDArray[np.float64]: ...
def head(weight: NDArray[Any], *, dtype: str, isa: str, threads: int = 1) -> Any: ...
def philox(seed: int, position: int, sample: int) -> int: ...
def read_bandwidth(threads: int, seconds: float, bytes: int = ...) -> float: ...
def arithmetic_peak(isa: str, dtype: str, threads: int, seconds: float) -> float: ...
def __getattr__(name: str) -> Any: ...
