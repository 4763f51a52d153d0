"""From rows to panels, to the bit: whatever the types, the sizes, and where the rows go."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine import _native

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
PANEL = 32
Array = NDArray[Any]


def plain(rows: Array, n: int, columns: list[int], dtype: str) -> Array:
    """The definition: [n / 32 panels][k / step][32 columns][step], a step of two in bf16, zero
    where there is nothing."""
    step = 2 if dtype == "bfloat16" else 1
    wide = np.zeros((-(-n // PANEL) * PANEL, -(-rows.shape[1] // PANEL) * PANEL), TYPES[dtype])
    with np.errstate(invalid="ignore"):
        wide[columns, : rows.shape[1]] = rows.astype(np.float32).astype(TYPES[dtype])
    panels = wide.reshape(-1, PANEL, wide.shape[1] // step, step).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(panels).reshape(-1).view(np.uint8)


def pack(rows: Array, n: int, dtype: str, **place: int) -> Array:
    bits = rows.view(np.uint16) if rows.dtype == ml_dtypes.bfloat16 else rows
    return _native.pack(bits, n=n, dtype=dtype, **place)


def every_number(kind: str) -> Array:
    """All of a 16-bit type; of fp32 the bf16 numbers, and what lies between two of them."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if kind != "float32":
        return bits.view(TYPES[kind])
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (bits[:, None].astype(np.uint32) << 16 | low).reshape(-1).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_number(kind: str, dtype: str) -> None:
    """A NaN stays one; everything else is rounded to the nearest, ties to even."""
    rows = every_number(kind).reshape(-1, 256)
    found = pack(rows, len(rows), dtype).view(TYPES[dtype])
    expected = plain(rows, len(rows), [*range(len(rows))], dtype).view(TYPES[dtype])
    with np.errstate(invalid="ignore"):
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(found), nan)
    bits = np.uint16 if dtype == "bfloat16" else np.uint32
    np.testing.assert_array_equal(found.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("k", [1, 15, 16, 31, 32, 33, 100])
@pytest.mark.parametrize("rows", [1, 3, 31, 32, 33, 70])
def test_every_size(rows: int, k: int, kind: str, dtype: str) -> None:
    rng = np.random.default_rng(rows * k)
    w = rng.normal(size=(rows, k)).astype(TYPES[kind])
    expected = plain(w, rows, [*range(rows)], dtype)
    np.testing.assert_array_equal(pack(w, rows, dtype), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("offset", "run", "stride"),
    [(0, 16, 32), (16, 16, 32), (5, 1 << 20, 1 << 20), (1, 3, 7), (40, 33, 65)],
)
def test_every_place(offset: int, run: int, stride: int, dtype: str) -> None:
    """Gates beside what they gate, and parts of a matrix behind each other."""
    w = np.random.default_rng(0).normal(size=(70, 50)).astype(np.float32)
    columns = [offset + i // run * stride + i % run for i in range(len(w))]
    expected = plain(w, columns[-1] + 1, columns, dtype)
    found = pack(w, columns[-1] + 1, dtype, offset=offset, run=run, stride=stride)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="do not fit"):
        pack(w, columns[-1], dtype, offset=offset, run=run, stride=stride)
