"""A head by itself: the same bits as the model's own, and rows of it in any order."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures import TinyModel
from tests.interpreted import DEVICE, emulated
from urial_engine import Engine
from urial_engine.backends.cpu import available_isas
from urial_engine.head import Head, compare_heads
from urial_engine.token_shift_states import narrow, read_states, wide, write_states

IDS = [1, 70, 80, 90, 75, 71]
TARGETS = np.array([*IDS[1:], 5], np.int32)
KINDS: dict[str, dict[str, Any]] = {
    "tied, bf16": {"tie_word_embeddings": True, "dtype": "bfloat16"},
    "untied": {},
    "two shards, fp16": {"shards": 2, "dtype": "float16"},
}
DEVICES = [
    *({"device": "cpu", "isa": isa, "dtype": "bfloat16"} for isa in available_isas()),
    {"device": "cpu", "dtype": "float32"},
    {"device": "reference"},
    {"device": DEVICE, "dtype": "float32"},
]
__all__ = ["emulated"]  # a fixture
pytestmark = pytest.mark.usefixtures("emulated")


def names(settings: dict[str, Any]) -> str:
    return ", ".join(map(str, settings.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", DEVICES, ids=names)
def test_a_head_alone_gives_the_bits_of_the_model(
    settings: dict[str, Any], kind: str, tiny_model: TinyModel
) -> None:
    folder = tiny_model(**KINDS[kind])
    with Engine(folder, kv_cache_gib=0.02, **settings) as engine, engine.open_head() as head:
        (hidden,) = engine.hidden_states([IDS], [0])
        whole = compare_heads(engine, hidden, TARGETS, 4, engine, hidden[::-1].copy())
        apart = compare_heads(head, hidden, TARGETS, 4, engine, hidden[::-1].copy())
        other = compare_heads(engine, hidden, TARGETS, 4, head, hidden[::-1].copy())
        # What the exits round to: states that are kept so lose nothing.
        narrow = {"bfloat16": ml_dtypes.bfloat16}.get(engine.backend.hidden_dtype, hidden.dtype)
        kept = hidden.astype(narrow).astype(hidden.dtype)
        rounded = compare_heads(head, kept, TARGETS, 4, head, kept[::-1].copy())
    for found in (apart, other, rounded):
        for side in ("base", "aligned"):
            for mine, theirs in zip(getattr(found, side), getattr(whole, side), strict=True):
                assert np.array_equal(mine, theirs)
        assert np.array_equal(found.kl_aligned_base, whole.kl_aligned_base)
        assert np.array_equal(found.kl_base_aligned, whole.kl_base_aligned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cpu", "reference", DEVICE])
def test_rows_are_kept_in_the_order_they_are_asked_for(
    device: str, kind: str, tiny_model: TinyModel
) -> None:
    """Runs, single rows and jumps back, over the slices in which the file is read."""
    folder = tiny_model(**KINDS[kind])
    rows = np.array([*range(40, 300), 7, 3, 5, *range(310, 300, -1)], np.int32)
    with (
        Engine(folder, device=device, kv_cache_gib=0.02) as engine,
        Head(folder, rows=rows, device=device) as head,
    ):
        (hidden,) = engine.hidden_states([IDS], [0])
        every, some = engine.backend.logits(hidden), head.backend.logits(hidden)
    np.testing.assert_allclose(some, every[:, rows], rtol=0, atol=1e-5)


def test_a_closed_head_and_a_wrong_size_are_errors(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    with Engine(folder, kv_cache_gib=0.02) as engine, Head(folder, rows=TARGETS) as head:
        (hidden,) = engine.hidden_states([IDS], [0])
        with pytest.raises(ValueError, match="vocabular"):
            compare_heads(engine, hidden, TARGETS, 0, head, hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_states_survive_a_file(dtype: str, tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    full = "f8" if dtype == "float64" else "f4"
    given = {"a / b": random.normal(size=(5, 8)).astype(full), "": np.empty((0, 8), full)}
    states = {name: narrow(array, dtype) for name, array in given.items()}
    keys, path = ["é", "x"], tmp_path / "states.npz"
    write_states(path, keys, states)
    found = read_states(path, keys)
    assert found is not None and list(found) == list(states)
    for name, array in states.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        rounded = given[name].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        assert np.array_equal(wide(found[name]), rounded.astype(full))
    assert read_states(path, ["é"]) is None  # of other answers
    assert read_states(tmp_path / "none.npz", keys) is None
    data = path.read_bytes()
    flipped = data[:200] + b"\0" * 9 + data[209:]
    for damaged in (b"", data[:100], data[:-50], b"x" * len(data), flipped):
        path.write_bytes(damaged)
        assert read_states(path, keys) is None
