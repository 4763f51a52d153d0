"""What the tests of native operations share: every rung, its rounding, and the bound on errors.

A rung is an instruction set with a dtype. Its weights and its cache are held in the dtype; what is
multiplied with them is fp32, but for the rungs with a dot product of two bf16, which round both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine.backends.cpu import available_isas

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SMALLEST = 2.0**-126  # the smallest normal number of both dtypes
SUBNORMAL = 2.0**-149  # the smallest fp32


class Options(TypedDict):
    isa: str
    dtype: str


def to_bf16(x: F32) -> F32:
    """The nearest bf16, ties to even."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


@dataclass(frozen=True)
class Rung:
    isa: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.isa}-{self.dtype}"

    @property
    def options(self) -> Options:
        """What every native operation is told."""
        return {"isa": self.isa, "dtype": self.dtype}

    @property
    def rounds_activations(self) -> bool:
        return self.dtype == "bfloat16" and self.isa in ("amx_bf16", "avx512_bf16")

    def stored(self, w: F32) -> F32:
        """A weight, a key or a value as the rung holds it."""
        return to_bf16(w) if self.dtype == "bfloat16" else w

    def read(self, x: F32) -> F32:
        """An activation as the rung multiplies it."""
        return to_bf16(x) if self.rounds_activations else x


RUNGS = [Rung(isa, dtype) for isa in available_isas() for dtype in ("float32", "bfloat16")]
every_rung = pytest.mark.parametrize("rung", RUNGS, ids=str)
every_isa = pytest.mark.parametrize("isa", available_isas())


def error(out: NDArray[Any], truth: F64, scale: NDArray[Any]) -> float:
    """The largest error, as a share of the scale that an element's rounding goes by."""
    assert out.shape == truth.shape and np.isfinite(out).all()
    return float((np.abs(out - truth) / scale).max(initial=0.0))


def assert_no_worse(
    out: NDArray[Any],
    naive: NDArray[Any],
    truth: F64,
    scale: NDArray[Any],
    *,
    factor: float = 1.5,
    epsilon: float,
) -> None:
    """The error is at most `factor` times that of the naive implementation, plus `epsilon`."""
    ours, theirs = error(out, truth, scale), error(naive, truth, scale)
    assert ours <= factor * theirs + epsilon, (ours, theirs)
