"""Times the norm, row by row on one thread: in a forward pass the rows are shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, all_rungs, main, normal, timed
from urial_engine.kernels.rmsnorm import reference
from urial_engine.kernels.rmsnorm.native import rmsnorm


@pytest.mark.parametrize("size", [576, 4096])
@all_rungs
def test_rmsnorm(benchmark: Any, rung: Rung, size: int) -> None:
    """[256, C]."""
    rows = 3 if benchmark.disabled else 256
    x, weight = normal(rows, size), normal(size)

    def call() -> Any:
        if rung.isa == "numpy":
            return reference(x, weight, 1e-5)
        return rmsnorm(x, weight, 1e-5, isa=rung.isa, dtype=rung.dtype)[0]

    out = timed(benchmark, rung, call, operations=4.0 * x.size, read=x.nbytes, cores=1)
    np.testing.assert_allclose(out, reference(x, weight, 1e-5), rtol=1e-5)


if __name__ == "__main__":
    raise SystemExit(main(__file__))
