"""The gated activation on every rung, as the end of a linear layer; and e^x of positive x, which
only it takes."""

from __future__ import annotations

import numpy as np
import pytest

from urial_engine.kernels.matmul.native import Linear
from urial_engine.kernels.silu_mul import reference
from urial_engine.kernels.silu_mul.native import gated

from .rungs import F32, SMALLEST, Rung, assert_no_worse, every_isa, every_rung

# Of an element: the exponential's 2.5 units of 2^-24, a sum, a division, a product.
EPSILON = 5.5 * 2.0**-24
ROUNDED = 2.0**-8 + EPSILON  # where the next layer reads bf16
# e^-gate stops at e^88: below, a gate leaves gate * e^-88 of what it gates, in place of still less.
LEAST = SMALLEST


def elementwise(rung: Rung, gate: F32, up: F32, threads: int = 1) -> F32:
    """gate and up [T, F] through weights that pick them out of [gate, up]: [T, F]."""
    size = gate.shape[1]
    identity = np.eye(2 * size, dtype=np.float32)
    layer = gated(identity[:size], identity[size:], threads=threads, **rung.options)
    return layer(np.concatenate([gate, up], axis=1))


def assert_matches(rung: Rung, gate: F32, up: F32) -> None:
    gate, up = rung.read(gate), rung.read(up)
    truth = reference(gate.astype(np.float64), up.astype(np.float64))
    naive = rung.read(reference(gate, up))
    epsilon = ROUNDED if rung.rounds_activations else EPSILON
    scale = np.abs(truth) + LEAST * (1 + np.abs(gate * up)) / epsilon
    factor = 0.0 if rung.rounds_activations else 1.0  # the rounding of the output is all there is
    assert_no_worse(
        elementwise(rung, gate, up), naive, truth, scale, factor=factor, epsilon=epsilon
    )


@every_rung
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 32, 33, 257])
def test_every_size(rung: Rung, size: int) -> None:
    rng = np.random.default_rng(size)
    gate, up = rng.normal(size=(2, 5, size)).astype(np.float32) * np.float32(4)
    for rows in (1, 2, 3, 5):
        assert_matches(rung, gate[:rows], up[:rows])


@every_rung
def test_every_gate(rung: Rung) -> None:
    """From far below to far above where e^-gate leaves fp32."""
    gate = np.linspace(-120, 120, 64 * 128).astype(np.float32).reshape(128, 64)
    assert_matches(rung, gate, np.ones_like(gate))
    assert_matches(rung, np.ldexp(gate, -20).astype(np.float32), gate)


@every_rung
def test_hard_numbers(rung: Rung) -> None:
    gate = np.array([[0, -0.0, 1e4, -1e4, 88, -88, 1e-40, 3e38, -3e38]], np.float32)
    for up in (1.0, -1e4, 0.0, 1e-30):
        out = elementwise(rung, gate, np.full_like(gate, up))
        assert np.isfinite(out[:, :-2]).all()
        assert (np.abs(out[0, [0, 1, 3, 5]]) <= 1e-29 * max(1, abs(up))).all()
    assert_matches(rung, gate[:, :7], np.full((1, 7), 2, np.float32))


@every_isa
def test_exponential_of_positive_numbers(isa: str) -> None:
    """silu(-x) = -x / (1 + e^x): above x = 20 the one is lost and e^x stands alone, to 1.25
    units in the last place, under a sum, a division and a product that round half a unit each."""
    rung = Rung(isa, "float32")
    x = np.random.default_rng(0).uniform(20, 86, size=(2000, 64)).astype(np.float32)
    wide = x.astype(np.float64)
    truth = -wide / (1 + np.exp(wide))
    out = elementwise(rung, -x, np.ones_like(x))
    assert np.abs(out / truth - 1).max() <= (2 * 1.25 + 1 + 1) * 2.0**-24


@every_rung
def test_not_finite_gives_not_finite(rung: Rung) -> None:
    gate = np.ones((3, 20), np.float32)
    up, clean = gate.copy(), elementwise(rung, gate, gate)
    gate[1, 4] = np.nan
    assert np.isnan(elementwise(rung, gate, up)[1]).all()  # through the sums of the identity
    np.testing.assert_array_equal(elementwise(rung, gate, up)[[0, 2]], clean[[0, 2]])
    up[0, 3] = np.inf
    assert not np.isfinite(elementwise(rung, gate, up)[0]).any()


@every_rung
def test_a_gated_layer_is_its_parts(rung: Rung) -> None:
    """Sizes with padding in both halves, biases, any M and any team: bit for bit the elementwise
    activation of two plain layers, where those are fp32."""
    rng = np.random.default_rng(3)
    for size in (1, 16, 33, 48, 65):
        w = rng.normal(size=(2 * size, 50)).astype(np.float32)
        bias = rng.normal(size=2 * size).astype(np.float32)
        x = rng.normal(size=(37, 50)).astype(np.float32)
        whole = Linear(w, bias, gated=True, **rung.options)(x)
        alone = Linear(w, bias, gated=True, threads=2, **rung.options)
        np.testing.assert_array_equal(np.concatenate([alone(row[None]) for row in x]), whole)
        parts = Linear(w, bias, **rung.options)(x)
        wide = np.split(parts.astype(np.float64), 2, axis=1)
        np.testing.assert_allclose(whole, reference(*wide), rtol=2 * ROUNDED, atol=1e-6)
        if not rung.rounds_activations:
            gate, up = np.split(parts, 2, axis=1)
            np.testing.assert_array_equal(whole, elementwise(rung, gate, up))
