"""The norm on every rung."""

from __future__ import annotations

import numpy as np
import pytest

from urial_engine.kernels.rmsnorm import reference
from urial_engine.kernels.rmsnorm.native import rmsnorm

from .rungs import F32, RUNGS, Rung, assert_no_worse, every_rung

SIZES = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 577, 2049]
EPSILON = 2.0**-22  # of an element: a multiply, a root, a division, a multiply, rounded each


def data(rows: int, size: int) -> tuple[F32, F32]:
    rng = np.random.default_rng([rows, size])
    return (
        rng.normal(size=(rows, size)).astype(np.float32),
        rng.normal(size=size).astype(np.float32),
    )


def assert_matches(rung: Rung, x: F32, weight: F32, epsilon: float) -> None:
    full, rounded, bad = rmsnorm(x, weight, epsilon, **rung.options)
    epsilon = float(np.float32(epsilon))
    truth = reference(x.astype(np.float64), weight.astype(np.float64), epsilon)
    naive = reference(x, weight, epsilon)
    scale = np.abs(truth) + 2.0**-126
    assert bad == -1
    assert_no_worse(full, naive, truth, scale, epsilon=EPSILON)
    np.testing.assert_array_equal(rounded, rung.read(full))


@every_rung
@pytest.mark.parametrize("size", SIZES)
def test_every_size(rung: Rung, size: int) -> None:
    assert_matches(rung, *data(3, size), epsilon=1e-5)


@every_rung
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e15])
def test_every_magnitude(rung: Rung, scale: float) -> None:
    x, weight = data(3, 65)
    assert_matches(rung, x * np.float32(scale), weight, 1e-6)
    assert_matches(rung, x, weight * np.float32(scale), 1e-6)


@every_rung
def test_peaks_and_zeros(rung: Rung) -> None:
    x, weight = data(4, 97)
    x[0] = 0
    x[1, 1:] = 0
    x[2, 5] = 1e6
    x[3] = x[3, 0]
    assert_matches(rung, x, weight, 1e-5)
    assert not rmsnorm(x, weight, 1e-5, **rung.options)[0][0].any()


@every_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(rung: Rung, bad: float) -> None:
    x, weight = data(6, 33)
    clean = rmsnorm(x, weight, 1e-5, **rung.options)[0]
    x[2, 32], x[4, 0] = bad, bad
    full, _, row = rmsnorm(x, weight, 1e-5, **rung.options)
    assert row == 2
    np.testing.assert_array_equal(full[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def test_bad_shapes_are_refused() -> None:
    x, weight = data(2, 5)
    for wrong in (x[:, :4].copy(), x[0], x[:0]):
        with pytest.raises(ValueError, match=r"x must be \[T, C\]"):
            rmsnorm(wrong, weight, 1e-5, **RUNGS[0].options)
