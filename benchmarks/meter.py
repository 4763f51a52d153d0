"""Counts the work that an engine hands to its backend: calls enter, operations and bytes leave.

What is counted is what the mathematics needs, whatever the backend really does: every weight is
read once a call, every block of the cache once however many sequences share it, and a multiply-add
is two operations. A share of the machine's limit is then a share of what could be had.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from urial_engine import Engine
from urial_engine.backends.base import Batch
from urial_engine.config import ModelConfig

ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(slots=True)
class Work:
    """The sum over some calls."""

    calls: int = 0
    rows: int = 0  # tokens that went through the layers
    operations: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0  # inside the backend
    each: list[tuple[float, float]] = field(default_factory=list)  # operations and bytes of a call

    def add(self, operations: float, moved: float) -> None:
        self.calls += 1
        self.operations += operations
        self.bytes += moved
        self.each.append((operations, moved))

    def least_seconds(self, arithmetic: float, read: float) -> float:
        """The roofline: no call ends before its operations are done, nor before its bytes are here,
        at the machine's limits in operations and bytes a second."""
        return sum(max(operations / arithmetic, moved / read) for operations, moved in self.each)


class Meter:
    """Stands before the backend of `engine` as long as that lives."""

    def __init__(self, engine: Engine) -> None:
        self._backend, self._config = engine.backend, engine.config
        self._item = ITEM_BYTES[engine.backend.dtype]
        self._log: list[tuple[str, Any, float]] = []
        for name in ("forward", "next_tokens", "score"):
            setattr(self._backend, name, self._noting(name, getattr(self._backend, name)))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(first: Any, *rest: Any) -> Any:
            start = time.perf_counter()
            result = call(first, *rest)
            # Counting waits for `take`: nothing here may take time.
            self._log.append((name, first, time.perf_counter() - start))
            return result

        return noted

    def take(self) -> Work:
        """What was done since the last `take`."""
        log, self._log = self._log, []
        work = Work()
        for name, first, seconds in log:
            work.seconds += seconds
            if name == "forward":
                self._add_layers(work, first)
            else:
                head = self._config.vocab_size * self._config.hidden_size
                work.add(2.0 * head * len(first), head * self._item)
        return work

    def _add_layers(self, work: Work, batch: Batch) -> None:
        c, weights = self._config, layer_weights(self._config)
        seen = np.minimum(batch.positions + 1, c.sliding_window or c.max_positions)  # keys [T]
        attention = 4.0 * c.num_layers * c.num_heads * c.head_dim * float(seen.sum())
        work.rows += len(batch.token_ids)
        blocks = self._blocks(batch, seen) * self._backend.block_bytes
        work.add(2.0 * weights * len(batch.token_ids) + attention, weights * self._item + blocks)

    def _blocks(self, batch: Batch, seen: Any) -> int:
        """How many distinct blocks of the cache the call looks at."""
        size = self._backend.block_size
        first, last = (batch.positions + 1 - seen) // size, batch.positions // size
        rows = zip(batch.sequences.tolist(), first.tolist(), last.tolist(), strict=True)
        spans: dict[int, tuple[int, int]] = {}
        for sequence, low, high in rows:
            known = spans.get(sequence, (low, high))
            spans[sequence] = (min(known[0], low), max(known[1], high))
        tables = batch.block_tables
        return len({b for s, (low, high) in spans.items() for b in tables[s, low : high + 1]})


def layer_weights(config: ModelConfig) -> int:
    """Numbers in the matrices of all layers, the head and the embedding left out."""
    c = config
    attention = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim * c.hidden_size
    return c.num_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
