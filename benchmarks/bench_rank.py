"""Times the head's scores, and the same from logits that numpy holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.operations import Rung, all_rungs, bits, main, native_rungs, normal, timed
from urial_engine.kernels.matmul import reference as matmul
from urial_engine.kernels.rank import reference
from urial_engine.kernels.rank.native import compare, head, score

ROWS, HIDDEN, VOCABULARY = 256, 576, 49152


def sizes(benchmark: Any) -> tuple[int, int, int]:
    return (5, 33, 300) if benchmark.disabled else (ROWS, HIDDEN, VOCABULARY)


def open_head(rung: Rung, weight: Any) -> Any:
    return head(bits(weight) if rung.item == 2 else weight, **rung.options)


@pytest.mark.parametrize("top_k", [0, 10])
@all_rungs
def test_rank(benchmark: Any, rung: Rung, top_k: int) -> None:
    """Hidden [M, C], weight [V, C]."""
    rows, hidden, vocabulary = sizes(benchmark)
    x, weight = normal(rows, hidden), normal(vocabulary, hidden) * np.float32(0.1)
    targets = (np.arange(rows) % vocabulary).astype(np.int32)
    model = None if rung.isa == "numpy" else open_head(rung, weight)

    def call() -> Any:
        if model is None:
            return reference(matmul(x, weight), targets, top_k)
        return score(model, x, targets, top_k)

    operations, read = 2.0 * rows * weight.size, rung.item * weight.size
    found = timed(benchmark, rung, call, operations=operations, read=read)
    truth = reference(matmul(x[:2], weight), targets[:2], top_k)
    assert np.abs(found.logprob[:2] - truth.logprob).max() < 0.2
    assert found.top_logprobs.shape == (rows, top_k)


@native_rungs
def test_compare(benchmark: Any, rung: Rung) -> None:
    """Two heads, both divergences."""
    rows, hidden, vocabulary = sizes(benchmark)
    x, weight = normal(rows, hidden), normal(vocabulary, hidden) * np.float32(0.1)
    base, aligned = open_head(rung, weight), open_head(rung, weight[::-1].copy())
    targets = np.zeros(rows, np.int32)
    operations, read = 4.0 * rows * weight.size, 2 * rung.item * weight.size
    *_, forward, backward = timed(
        benchmark, rung, lambda: compare(base, x, targets, aligned, x),
        operations=operations, read=read,
    )  # fmt: skip
    assert (forward > 0).all() and (backward > 0).all()


if __name__ == "__main__":
    raise SystemExit(main(__file__))
