"""The linear layer on every rung: truth, exact values, and one result for any M and any team."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine.kernels.matmul import reference
from urial_engine.kernels.matmul.native import Linear

from .rungs import F32, RUNGS, SMALLEST, SUBNORMAL, Rung, assert_no_worse, every_rung, to_bf16

# One past and one short of: a register's lanes, a micro tile's rows (4, 5, 12, 32), a panel (32).
ROWS = [1, 2, 4, 5, 6, 12, 13, 17, 32, 33, 65]
INNER = [1, 2, 3, 31, 32, 33, 63, 65, 577]
COLUMNS = [1, 16, 31, 32, 33, 257]
EPSILON = 2.0**-22  # of the sum of |x w|: what a naive sum of two terms may have by chance is 0


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def assert_matches(rung: Rung, layer: Linear, x: F32, w: F32, bias: F32 | None = None) -> None:
    """Judged against fp64 on what is multiplied: x and w after rounding to storage."""
    x_read, w_stored = rung.read(x), rung.stored(w)
    wide = [None if a is None else a.astype(np.float64) for a in (x_read, w_stored, bias)]
    size = reference(*(None if a is None else np.abs(a) for a in wide))  # type: ignore[arg-type]
    truth = reference(*wide)  # type: ignore[arg-type]
    # A dot product of bf16 takes numbers below the normal ones for 0: that much of each term.
    lost = SMALLEST if rung.rounds_activations else 0
    scale = size + (x.shape[1] * lost + SUBNORMAL) / EPSILON
    assert_no_worse(layer(x), reference(x_read, w_stored, bias), truth, scale, epsilon=EPSILON)


@every_rung
@pytest.mark.parametrize("n", COLUMNS)
def test_every_size(rung: Rung, n: int) -> None:
    for k in INNER:
        w, bias = normal(n, k), normal(n, seed=1)
        layer, biased = Linear(w, **rung.options), Linear(w, bias, **rung.options)
        for m in ROWS:
            assert_matches(rung, layer, normal(m, k, seed=2), w)
        assert_matches(rung, biased, normal(3, k, seed=3), w, bias)


def peaked(x: F32) -> F32:
    """One element of each row outweighs all the others."""
    x = x * np.float32(1e-4)
    x[:, 3] = 1e4
    return x


HARD: dict[str, Any] = {
    "large": lambda x: x * np.float32(1e4),
    "peaks": peaked,
    "zeros": lambda x: x * 0,
    "one row": lambda x: np.repeat(x[:1], len(x), axis=0),
    "cancelling": lambda x: np.where(np.arange(x.shape[1]) % 2, -np.abs(x), np.abs(x)),
    "every size": lambda x: np.ldexp(x, np.arange(x.shape[1]) % 60 - 30).astype(np.float32),
    "denormal": lambda x: x * np.float32(1e-39),
    "root of denormal": lambda x: x * np.float32(2.0**-63),  # of two such, the product is
}


@every_rung
@pytest.mark.parametrize("kind", HARD)
def test_hard_numbers(rung: Rung, kind: str) -> None:
    x, w = normal(33, 97), normal(65, 97, seed=1)
    for a, b in [(HARD[kind](x), w), (x, HARD[kind](w)), (HARD[kind](x), HARD[kind](w))]:
        assert_matches(rung, Linear(b, **rung.options), a, b)


@every_rung
def test_rows_have_the_same_bits_alone_and_together(rung: Rung) -> None:
    w, x = normal(97, 129), normal(301, 129, seed=1)
    layer = Linear(w, **rung.options)
    together = layer(x)
    alone = np.concatenate([layer(row[None]) for row in x])
    np.testing.assert_array_equal(alone, together)
    for chunk in (2, 11, 33, 256):
        parts = [layer(x[i : i + chunk]) for i in range(0, len(x), chunk)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(Linear(w, threads=threads, **rung.options)(x), together)
    np.testing.assert_array_equal(layer(np.repeat(x[:1], 40, axis=0)), np.repeat(alone[:1], 40, 0))


@every_rung
@pytest.mark.parametrize("kind", HARD)
def test_few_rows_have_the_bits_of_many_on_hard_numbers(rung: Rung, kind: str) -> None:
    """Few rows have a kernel of their own, on amx_bf16 even other instructions: it rounds alike,
    denormal numbers and sums included."""
    x, w = normal(33, 545), normal(100, 545, seed=1)
    for a, b in [(HARD[kind](x), w), (x, HARD[kind](w)), (HARD[kind](x), HARD[kind](w))]:
        layer = Linear(b, **rung.options)
        together = layer(a)
        for rows in range(1, 8):
            parts = [layer(a[i : i + rows]) for i in range(0, len(a), rows)]
            np.testing.assert_array_equal(np.concatenate(parts), together)


@every_rung
def test_few_rows_flush_as_many_do(rung: Rung) -> None:
    """Sums on either side of the smallest normal number, and what rounds up to it."""
    tiny = np.ldexp(1.0, [-63, -63, -76, -50]).astype(np.float32)
    x, w = np.zeros((33, 64), np.float32), np.zeros((100, 64), np.float32)
    x[:, [0, 2, 4, 33]] = tiny
    for row, signs in enumerate(np.ndindex(3, 3, 3, 3)):
        w[row, [0, 2, 4, 33]] = tiny * (np.array(signs) - 1)
    layer = Linear(w, **rung.options)
    together = layer(x)
    for rows in (1, 2, 3):
        np.testing.assert_array_equal(layer(x[:rows]), together[:rows])


def ties() -> F32:
    """Half-way between two bf16, and one fp32 to either side: [3, 512]. Both neighbours stand for
    even and for odd, for both signs, for many exponents."""
    bits = np.arange(256, dtype=np.uint32)[None] * np.uint32(0x00810000) % np.uint32(0x3F800000)
    bits = (bits + np.uint32(0x20000000) + np.uint32(0x8000)) + np.array([[-1], [0], [1]], np.int32)
    half = bits.astype(np.uint32).view(np.float32)
    return np.concatenate([half, -half], axis=1)


@every_rung
def test_rounding_to_storage_is_exact(rung: Rung) -> None:
    """Times the identity: an activation, then a weight, comes out as it was rounded, bit for
    bit."""
    x = np.concatenate([ties(), normal(40, 512) * np.float32(1e4)])
    identity = np.eye(512, dtype=np.float32)
    assert not np.array_equal(to_bf16(ties()), ties())
    np.testing.assert_array_equal(Linear(identity, **rung.options)(x), rung.read(x))
    np.testing.assert_array_equal(Linear(x, **rung.options)(identity), rung.stored(x).T)


@every_rung
def test_sources_of_sixteen_bits(rung: Rung) -> None:
    """float16 and bfloat16 on disk, subnormal numbers of float16 included."""
    half = (normal(33, 64) * np.float32(1e-4)).astype(np.float16)
    half.ravel()[:2] = 6e-8, -6e4
    brain = normal(33, 64).astype(ml_dtypes.bfloat16)
    identity = np.eye(64, dtype=np.float32)
    sources: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (half, half), (brain.view(np.uint16), brain)
    ]  # fmt: skip
    for given, values in sources:
        got = Linear(given, **rung.options)(identity)
        np.testing.assert_array_equal(got, rung.stored(values.astype(np.float32)).T)


@every_rung
def test_residual(rung: Rung) -> None:
    """y + residual, added after the sum: the same bits as adding by hand."""
    w, x, bias = normal(149, 70), normal(37, 70, seed=1), normal(149, seed=2)
    layer, residual = Linear(w, bias, **rung.options), normal(37, 149, seed=3) * np.float32(1e3)
    for rows in (1, 2, 3, 37):
        got = layer(x[:rows], residual[:rows])
        np.testing.assert_array_equal(got, residual[:rows] + layer(x[:rows]))


@every_rung
def test_a_value_that_is_not_finite_stays_in_its_row(rung: Rung) -> None:
    w, x = normal(40, 50), normal(35, 50, seed=1)
    layer, bad = Linear(w, **rung.options), x.copy()
    bad[7, 3], bad[20, 0] = np.nan, np.inf
    out, clean = layer(bad), layer(x)
    assert np.isnan(out[7]).all() and not np.isfinite(out[20]).any()
    others = np.delete(np.arange(35), [7, 20])
    np.testing.assert_array_equal(out[others], clean[others])
    np.testing.assert_array_equal(layer(x), clean)  # nothing of it is left behind


def test_bad_shapes_are_refused_and_leave_the_layer_usable() -> None:
    rung = RUNGS[-1]
    w, x = normal(4, 6), normal(2, 6, seed=1)
    layer = Linear(w, threads=2, **rung.options)
    good = layer(x)
    for wrong in (normal(2, 5), normal(6), np.zeros((0, 6), np.float32)):
        with pytest.raises(ValueError, match=r"x must be \[M, K\]"):
            layer(wrong)
        np.testing.assert_array_equal(layer(x), good)
    with pytest.raises(ValueError, match="shape of the output"):
        layer(x, normal(2, 3))
    with pytest.raises(ValueError, match="as many rows of gate"):
        Linear(normal(3, 6), gated=True, **rung.options)
    with pytest.raises(ValueError, match="a value a row"):
        Linear(w, normal(3), **rung.options)
    with pytest.raises(ValueError, match="uint16"):
        Linear(w.astype(np.int32), **rung.options)
    with pytest.raises(ValueError, match="instruction set 'none'"):
        Linear(w, dtype="float32", isa="none")
