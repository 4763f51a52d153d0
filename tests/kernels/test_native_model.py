"""A model of one layer on every rung, where a kernel's boundary shows only in the whole: what one
call leaves behind for the next, and what is refused at the door."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine import _native

from .rungs import F32, RUNGS, Rung, every_rung

SHAPE: dict[str, Any] = {
    "vocab": 37, "hidden": 24, "feed_forward": 40, "layers": 1, "heads": 6, "kv_heads": 2,
    "head_dim": 8, "window": 0, "positions": 256, "norm_eps": 1e-5, "tied": True,
}  # fmt: skip
WIDE = SHAPE | {"feed_forward": 100, "heads": 12, "kv_heads": 4, "head_dim": 16}  # 10, 7, 3 panels


def parts(shape: dict[str, Any]) -> dict[str, tuple[int, int]]:
    c, f, d = shape["hidden"], shape["feed_forward"], shape["head_dim"]
    q, kv = shape["heads"] * d, shape["kv_heads"] * d
    return {
        "q_proj": (q, c), "k_proj": (kv, c), "v_proj": (kv, c), "o_proj": (c, q),
        "gate_proj": (f, c), "up_proj": (f, c), "down_proj": (c, f), "lm_head": (shape["vocab"], c),
    }  # fmt: skip


def make(rung: Rung, threads: int = 2, frequencies: int | None = None, **shape: Any) -> Any:
    shape = SHAPE | shape
    count = shape["head_dim"] // 2 if frequencies is None else frequencies
    return _native.Model(shape, rung.dtype, rung.isa, threads, np.zeros(count, np.float32))


def loaded(
    rung: Rung,
    plant: dict[tuple[str, int, int], float] | None = None,
    threads: int = 2,
    **shape: int,
) -> Any:
    """Random weights; `plant`: a value at (part, row, column)."""
    full = SHAPE | shape
    model, rng = make(rung, threads, **shape), np.random.default_rng(0)
    for part, size in parts(full).items():
        w = rng.normal(size=size, scale=0.3).astype(np.float32)
        for (name, row, column), value in (plant or {}).items():
            if name == part:
                w[row, column] = value
        model.load_matrix(part, 0, 0, w)
    for layer, feed_forward in [(0, False), (0, True), (1, True)]:
        model.load_norm(layer, feed_forward, np.ones(24, np.float32))
    model.allocate(full["positions"] // 64)
    return model


def forward(model: Any, ids: list[int], table: list[int], start: int = 0) -> tuple[F32, int, int]:
    positions = np.arange(start, start + len(ids), dtype=np.int32)
    tables: NDArray[np.int32] = np.array([table], np.int32)
    found: tuple[F32, int, int] = model.forward(
        np.array(ids, np.int32), positions, positions * 0, tables
    )
    return found


@every_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_leaves_nothing_behind(rung: Rung, bad: float) -> None:
    """The hidden size is padded: a fault reaches the padding too, and the next call starts anew."""
    model = loaded(rung, {("lm_head", 5, 3): bad})
    clean, _, row = forward(model, [1, 2, 3], [0])
    assert row == -1
    hidden, layer, row = forward(model, [1, 5, 3], [1])
    assert (layer, row) == (-1, 1)
    np.testing.assert_array_equal(hidden[0], clean[0])
    again, _, row = forward(model, [1, 2, 3], [2])
    assert row == -1
    np.testing.assert_array_equal(again, clean)


@every_rung
@pytest.mark.parametrize(
    ("part", "row", "layer"),
    [("v_proj", 3, 0), ("k_proj", 3, 0), ("q_proj", 3, 0), ("o_proj", 3, 0), ("down_proj", 2, 0)],
)
def test_a_fault_names_the_layer_that_made_it(rung: Rung, part: str, row: int, layer: int) -> None:
    hidden, found, first = forward(loaded(rung, {(part, row, 1): np.nan}), [1, 2], [0])
    assert (found, first) == (layer, 0)
    assert hidden.shape == (2, 24)


@every_rung
def test_long_calls_have_the_bits_of_short_ones(rung: Rung) -> None:
    """From 192 rows a thread on, threads share out rows instead of columns."""
    ids = np.random.default_rng(1).integers(0, SHAPE["vocab"], 450).tolist()
    table = list(range(8))
    cut = loaded(rung, threads=1, positions=512)
    parts = [forward(cut, ids[i : i + 50], table, i)[0] for i in range(0, len(ids), 50)]
    for threads in (1, 2):
        whole, _, row = forward(loaded(rung, threads=threads, positions=512), ids, table)
        assert row == -1
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@every_rung
def test_few_rows_have_the_bits_of_many_however_their_panels_are_shared_out(rung: Rung) -> None:
    """Few rows take several panels at once: matrices of 10, 7 and 3, for 1 to 4 threads."""
    ids = np.random.default_rng(2).integers(0, WIDE["vocab"], 40).tolist()
    whole, _, row = forward(loaded(rung, threads=1, **WIDE), ids, [0])
    assert row == -1
    for threads in (1, 2, 3, 4):
        for rows in (1, 2, 3, 7):
            model = loaded(rung, threads=threads, **WIDE)
            cut = [forward(model, ids[i : i + rows], [0], i)[0] for i in range(0, 40, rows)]
            np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_every_block_that_a_row_may_touch_is_checked() -> None:
    """Also those of the later rows of a sequence, and of a chunk that starts further on."""
    model = loaded(RUNGS[-1])
    for table, start, count in [([0, 4], 60, 5), ([0, -1], 63, 2), ([0, 1, 9], 120, 10)]:
        with pytest.raises(ValueError, match="block outside the pool"):
            forward(model, [1] * count, table, start)
    with pytest.raises(ValueError, match="block table"):
        forward(model, [1] * 5, [0], 60)
    with pytest.raises(ValueError, match="outside the context"):
        forward(model, [1] * 3, [0, 1, 2, 3, 0], 254)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        forward(model, [37], [0])
    assert forward(model, [1] * 70, [0, 1])[2] == -1


def test_a_weight_has_exactly_its_shape() -> None:
    """A row more would still fit into the padding of a panel, or into the next part's columns."""
    model = loaded(RUNGS[-1])
    for part, (rows, columns) in parts(SHAPE).items():
        wrong = [(0, rows + 1, columns), (0, rows, columns + 1), (0, rows, columns - 1)]
        for first, *shape in [*wrong, (1, rows, columns), (-1, 1, columns), (rows + 1, 0, columns)]:
            with pytest.raises(ValueError, match="another shape"):
                model.load_matrix(part, 0, first, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="another size"):
        model.load_bias("q_proj", 0, np.zeros(49, np.float32))
    with pytest.raises(ValueError, match="unknown weight part"):
        model.load_matrix("x_proj", 0, 0, np.zeros((1, 1), np.float32))
    with pytest.raises(IndexError):
        model.load_matrix("q_proj", 1, 0, np.zeros((48, 24), np.float32))


@every_rung
def test_a_weight_may_come_in_pieces_of_any_size(rung: Rung) -> None:
    """Two models of the same weights say the same."""
    whole, pieces = loaded(rung), loaded(rung, {("lm_head", 0, 0): np.nan, ("up_proj", 1, 1): 9.0})
    rng = np.random.default_rng(0)
    for part, (rows, columns) in parts(SHAPE).items():
        w = rng.normal(size=(rows, columns), scale=0.3).astype(np.float32)
        for first in range(0, rows, 7):
            pieces.load_matrix(part, 0, first, w[first : first + 7])
    ids = list(range(37))
    np.testing.assert_array_equal(forward(whole, ids, [0])[0], forward(pieces, ids, [0])[0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"kv_heads": 0}, "multiple of key heads"),
        ({"kv_heads": 4}, "multiple of key heads"),
        ({"threads": 0}, "at least one thread"),
        ({"frequencies": 5}, "rotary frequencies"),
    ],
)
def test_an_impossible_model_is_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(RUNGS[-1], **shape)
