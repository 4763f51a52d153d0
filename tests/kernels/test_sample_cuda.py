"""The CUDA kernel that chooses tokens, on this CPU (tools/emulate.py), against the reference. Each
batch runs its threads in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tools import emulate

from .emulated import I32, call, filled, thread_order
from .rungs import F32
from .test_sample import (
    DTYPES,
    PENALTIES,
    Row,
    by_reference,
    margin,
    plain,
    random_logits,
    random_row,
)

VOCABULARIES = [1, 2, 33, 257, 1000, 1024, 1025, 2500, 4097]
ROWS = 60  # of a batch
batches = pytest.mark.parametrize("batch", range(36), ids="batch{}".format)
orders = pytest.mark.parametrize("order", emulate.ORDERS, ids="order{}".format)
SHORT = {f"{name}_penalty": name for name in ("repetition", "presence", "frequency")}


def arrays(rows: list[Row]) -> dict[str, NDArray[Any]]:
    """What the kernel reads: a column for each field, ragged lists end to end."""
    how: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        values: list[NDArray[Any]] = [np.asarray(row[name], dtype) for row in rows]
        if name not in (*PENALTIES, "banned_ids"):
            how[SHORT.get(name, name)] = np.array(values, dtype)
            continue
        how[name] = np.concatenate(values)
        ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
        how[name.split("_")[0] + "_offsets"] = ends
    return how


def choose(z: F32, rows: list[Row]) -> tuple[I32, I32]:
    """Token and whether one was possible, of logits z [M, V]. They are the same afterwards, and
    what stands between the rows has not been touched."""
    count, vocab = z.shape
    held = np.full((count, vocab + 3), np.nan, np.float32)
    held[:, :vocab] = z
    before, how = held.tobytes(), arrays(rows)
    scratch = filled(len(how["penalty_ids"]) + len(how["banned_ids"]))
    ids, possible = filled(count, np.int32), filled(count, np.int32)
    size = {"rows": count, "vocab": vocab, "stride": vocab + 3}
    call("sample", z=held, **size, **how, scratch=scratch, token_ids=ids, possible=possible)
    assert held.tobytes() == before
    assert ((ids >= 0) & (ids < vocab)).all()
    return ids, possible


@batches
def test_token_for_token(batch: int) -> None:
    """Every setting, its extremes, ties everywhere; where a token differs, the draw or a cut came
    nearer to a boundary than fp32 knows it."""
    rng = np.random.default_rng([1, batch])
    vocab = VOCABULARIES[batch % len(VOCABULARIES)]
    rows = [random_row(rng, vocab) for _ in range(ROWS)]
    z = np.stack([random_logits(rng, vocab) for _ in rows])
    with thread_order(batch):
        ids, possible = choose(z, rows)
    truth = [by_reference(*pair) for pair in zip(z, rows, strict=True)]
    assert possible.tolist() == [int(token is not None) for token in truth]
    pairs = zip(z, rows, ids, truth, strict=True)
    different = [margin(z, row) for z, row, a, b in pairs if b is not None and a != b]
    assert len(different) <= 1 and max(different, default=0) < 1e-6


@orders
def test_a_draw_depends_on_its_own_row_alone(order: int) -> None:
    """Neither on other rows nor on the order of threads."""
    rng = np.random.default_rng(2)
    rows = [random_row(rng, 1500) for _ in range(12)]
    z = np.stack([random_logits(rng, 1500) for _ in rows])
    ids, possible = choose(z, rows)
    mixed = rng.permutation(12)[:8]
    with thread_order(order):
        again = choose(z[mixed], [rows[i] for i in mixed])
    np.testing.assert_array_equal(again[0], ids[mixed])
    np.testing.assert_array_equal(again[1], possible[mixed])


@pytest.mark.parametrize("vocab", [1, 5, 1023, 3000])
def test_greedy_takes_the_smallest_id_among_equals(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    z = rng.integers(0, 4, size=(12, vocab)).astype(np.float32)
    z[0], z[1] = -5, -3e38
    z[2] = np.where(rng.random(vocab) < 0.5, 0.0, -0.0)  # equal, whatever their bits
    ids, possible = choose(z, [plain()] * 12)
    np.testing.assert_array_equal(ids, z.argmax(axis=1))
    assert possible.all()


def test_cuts_fall_where_they_should() -> None:
    """Among equals the smallest ids stay; counts of exactly one, all, and more than all."""
    z = np.zeros((1, 1100), np.float32)
    z[0, 500:] = 1
    for fields, allowed in [
        ({"top_k": 1}, [500]),
        ({"top_k": 3}, [500, 501, 502]),
        ({"top_k": 600}, range(500, 1100)),
        ({"top_k": 601}, [0, *range(500, 1100)]),
        ({"top_k": 2**31 - 1, "min_p": 1}, range(500, 1100)),
        ({"top_p": 1e-6}, [500]),
        ({"top_k": 4, "top_p": 0.5}, [500, 501]),  # half of the sum is reached, not passed
        ({"top_k": 4, "top_p": 0.5000001}, [500, 501, 502]),
        ({"banned_ids": [500], "top_k": 2}, [501, 502]),
        ({"banned_ids": [9], "penalty_ids": [1, 2, 9], "presence_penalty": -100,
          "penalty_repeats": [0, 0, 0], "penalty_counts": [0, 1, 1]}, [2]),
        ({"banned_ids": [i for i in range(1100) if i != 77]}, [77]),
    ]:  # fmt: skip
        rows = [plain(temperature=1, seed=seed, **fields) for seed in range(8)]
        ids, _ = choose(np.repeat(z, 8, axis=0), rows)
        assert set(ids.tolist()) <= set(allowed), fields
        truth = [by_reference(z[0], row) for row in rows]
        assert ids.tolist() == truth, fields


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nothing_to_choose_from(temperature: float) -> None:
    z = np.random.default_rng(4).normal(size=(6, 40)).astype(np.float32)
    z[1, 39], z[2, 0], z[3] = np.nan, np.inf, -np.inf
    z[4, 7] = -np.inf  # a token of probability 0 is no fault of the row
    rows = [plain(temperature=temperature, seed=i) for i in range(6)]
    rows[5] |= {"banned_ids": range(40)}
    ids, possible = choose(z, rows)
    assert possible.tolist() == [1, 0, 0, 0, 1, 0]
    assert ids[[0, 4]].tolist() == [by_reference(z[i], rows[i]) for i in (0, 4)]


def test_draws_follow_the_softmax() -> None:
    """Pearson's chi-square of 1,500 draws at distinct positions against softmax(z / 0.7)."""
    z = np.random.default_rng(3).normal(size=12).astype(np.float32)
    rows = [plain(temperature=0.7, seed=2**40 + 5, sample=1, position=i) for i in range(1500)]
    drawn = np.bincount(choose(np.tile(z, (1500, 1)), rows)[0], minlength=12)
    p = np.exp(z / 0.7) / np.exp(z / 0.7).sum() * 1500
    assert ((drawn - p) ** 2 / p).sum() < 31.3  # 11 degrees of freedom: once in 1,000


def test_bad_arguments_are_refused() -> None:
    good = {name: array.ctypes.data for name, array in arrays([plain()]).items()}
    good |= {"z": 16, "rows": 1, "vocab": 9, "stride": 9, "token_ids": 16, "possible": 16}
    for wrong, message in [
        ({"vocab": 2**20 + 1, "stride": 2**21}, "within 1"),
        ({"vocab": 0}, "within 1"),
        ({"stride": 8}, "within 1"),
        ({"seed": 0}, "seed is missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            call("sample", **(good | wrong))
