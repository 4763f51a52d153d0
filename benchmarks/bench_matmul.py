"""Times the linear layer: what decoding, a small batch and prefill ask of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, all_rungs, bits, main, normal, timed
from urial_engine.kernels.matmul import reference
from urial_engine.kernels.matmul.native import Linear

SMALL = (33, 40)


@pytest.mark.parametrize("shape", [(576, 1536), (4096, 4096)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("rows", [1, 32, 256])
@all_rungs
def test_matmul(benchmark: Any, rung: Rung, rows: int, shape: tuple[int, int]) -> None:
    """[M, K] by [N, K]."""
    inner, columns = SMALL if benchmark.disabled else shape
    x, weight = normal(rows, inner), normal(columns, inner)
    if rung.isa == "numpy":
        layer: Any = lambda x: reference(x, weight)  # noqa: E731
    else:
        layer = Linear(bits(weight) if rung.item == 2 else weight, **rung.options)
    operations, read = 2.0 * rows * inner * columns, rung.item * inner * columns
    out = timed(benchmark, rung, lambda: layer(x), operations=operations, read=read)
    error = np.abs(out - reference(x, weight)).max()
    assert error < 0.03 * inner**0.5  # bf16 rounds to 2^-8


if __name__ == "__main__":
    raise SystemExit(main(__file__))
