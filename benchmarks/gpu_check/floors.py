"""What is promised of a GPU: a row goes in; the same row comes out with its floor, and whether it
was reached. That results are right, and the same, is judged where they are compared."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu_check.report import Row

MOST_SECONDS = 8 * 60


def with_floor(row: Row) -> Row:
    """A speed that nothing is promised of is returned as it is."""
    if row.part == "attention" and "batch 32" in row.what and row.times is not None:
        return _held(row, "twice as fast as unshared", row.times >= 2)
    if row.part == "step" and row.what.endswith("decode at batch 1"):
        return _held(row, "80 % of the copy bandwidth", (row.memory or 0) >= 0.8)
    if row.part == "score" and row.times is not None and row.leaner is not None:
        floor = "at least as fast as torch's logits, in a tenth of the memory"
        return _held(row, floor, row.times >= 1 and row.leaner >= 10)
    return row


def total(seconds: float) -> Row:
    """The whole command. One that takes longer is not run."""
    return _held(Row("total", "all of it", seconds), "8 minutes", seconds <= MOST_SECONDS)


def _held(row: Row, floor: str, reached: bool) -> Row:
    return replace(row, floor=floor, reached=reached)
