"""Times the gated activation where it is: at the end of the layer that makes gate and up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, all_rungs, main, normal, timed
from urial_engine.kernels.matmul import reference as matmul
from urial_engine.kernels.silu_mul import reference
from urial_engine.kernels.silu_mul.native import gated


@pytest.mark.parametrize("rows", [1, 256])
@all_rungs
def test_silu_mul(benchmark: Any, rung: Rung, rows: int) -> None:
    """[T, C] by two [F, C] -> [T, F]."""
    inner, columns = (33, 20) if benchmark.disabled else (576, 1536)
    x, gate, up = normal(rows, inner), normal(columns, inner), normal(columns, inner + 1)[:, :-1]

    def naive() -> Any:
        return reference(matmul(x, gate), matmul(x, up))

    layer: Any = None if rung.isa == "numpy" else gated(gate, up, **rung.options)
    call = (lambda: layer(x)) if layer else naive
    operations, read = 4.0 * rows * inner * columns, 2 * rung.item * inner * columns
    out = timed(benchmark, rung, call, operations=operations, read=read)
    assert np.abs(out - naive()).max() < 0.1 * inner  # of products of two sums


if __name__ == "__main__":
    raise SystemExit(main(__file__))
