"""Times the choice of a token, the head's product included: greedy, drawn, and drawn from a
nucleus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, bits, main, native_rungs, normal, timed
from urial_engine.kernels.sample.native import head

HOW: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
}


def batch(rows: int, how: dict[str, float]) -> dict[str, Any]:
    """The fields of `SampleBatch`, the same for every row."""
    off = dict.fromkeys(("temperature", "min_p", "presence_penalty", "frequency_penalty"), 0.0)
    floats = off | {"top_p": 1.0, "repetition_penalty": 1.0} | how
    fields: dict[str, Any] = {n: np.full(rows, v, np.float32) for n, v in floats.items()}
    for name, dtype in [("top_k", np.int32), ("seed", np.uint64), ("sample", np.uint32)]:
        fields[name] = np.zeros(rows, dtype)
    fields["position"] = np.arange(rows, dtype=np.uint32)
    for name in ("penalty_ids", "penalty_counts", "banned_ids"):
        fields[name] = np.zeros(0, np.int32)
    fields["penalty_repeats"] = np.zeros(0, np.uint8)
    return fields | dict.fromkeys(("penalty_offsets", "banned_offsets"), np.zeros(rows + 1, "i4"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rows", [1, 32])
@native_rungs
def test_sample(benchmark: Any, rung: Rung, rows: int, how: str) -> None:
    """One call, over the vocabulary of the 135M model."""
    hidden, vocabulary = (33, 300) if benchmark.disabled else (576, 49152)
    weight = normal(vocabulary, hidden) * np.float32(0.1)
    model = head(bits(weight) if rung.item == 2 else weight, **rung.options)
    x, fields = normal(rows, hidden), batch(rows, HOW[how])
    ids, *_, bad = timed(
        benchmark, rung, lambda: model.next_tokens(x, fields, 0),
        operations=2.0 * rows * weight.size, read=rung.item * weight.size,
    )  # fmt: skip
    assert bad == -1 and (ids >= 0).all() and (ids < vocabulary).all()


if __name__ == "__main__":
    raise SystemExit(main(__file__))
