"""Times whole steps of a model of random weights: reading a prompt, and decoding behind a prefix
that is shared or not, as its backend runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.clock import Clock, Limits
from benchmarks.gpu_check.report import Row
from urial_engine.backends.base import Batch, SampleBatch
from urial_engine.backends.cuda import CudaBackend
from urial_engine.backends.cuda_choose import nothing_special
from urial_engine.config import ModelConfig
from urial_engine.weights import Weights, parameter_shapes

BLOCK = 64
SLICE = 1 << 20  # elements
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


class RandomWeights:
    """In place of `Weights`: parameters of a shape, without a file."""

    tied, dtype = False, "bfloat16"

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.shapes = config, parameter_shapes(config, tied=False)

    def load(self, take: Callable[[str, int, NDArray[Any]], None], threads: int) -> None:
        """Matrices are slices of one run of random numbers, which begin at different places of it,
        so that rows rarely repeat; norms are ones."""
        random = np.random.default_rng(0)
        values = random.standard_normal(4 * SLICE, np.float32) * self.config.hidden_size**-0.5
        values = values.astype(ml_dtypes.bfloat16)
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                take(name, 0, np.ones(shape, ml_dtypes.bfloat16))
                continue
            count, width = shape
            step = min(SLICE // width, count)
            for first in range(0, count, step):
                rows, begin = min(step, count - first), int(random.integers(3 * SLICE))
                take(name, first, values[begin : begin + rows * width].reshape(rows, width))


def greedy(rows: int) -> SampleBatch:
    return nothing_special(rows, 0, 0, 0)


class Steps:
    """A backend whose cache holds `batch` sequences of prefix + own tokens at most."""

    def __init__(
        self, clock: Clock, config: ModelConfig, batch: int, tokens: int, *, invariant: bool
    ) -> None:
        self.clock, self.config = clock, config
        weights = cast(Weights, RandomWeights(config))
        self.backend = CudaBackend(weights, clock.device, invariant=invariant)
        wanted = batch * (tokens // BLOCK + 1)
        room = self.backend.cache_room(batch, tokens, tokens)
        self.blocks = min(wanted, room // self.backend.block_bytes)
        self.backend.allocate(self.blocks)

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt to the choice of the next token."""
        ids = np.arange(tokens, dtype=np.int32) % self.config.vocab_size
        tables = np.arange(tokens // BLOCK + 1, dtype=np.int32)[None]
        positions = np.arange(tokens, dtype=np.int32)
        batch = Batch(ids, positions, np.zeros(tokens, np.int32), tables)

        def call() -> None:
            self.backend.next_tokens(self.backend.forward(batch)[tokens - 1 :], greedy(1))

        return self.clock.wall(call)

    def decode(self, batch: int, prefix: int, own: int, *, shared: bool) -> float | None:
        """Seconds a step, choice included; None where the cache has no room for it."""
        each = (prefix + own - 1) // BLOCK + 1
        common = prefix // BLOCK if shared else 0
        if common + batch * (each - common) > self.blocks:
            return None
        tables = np.arange(batch * (each - common), dtype=np.int32).reshape(batch, -1) + common
        start = np.broadcast_to(np.arange(common, dtype=np.int32), (batch, common))
        tables = np.hstack([start, tables]).astype(np.int32)
        rows = np.arange(batch, dtype=np.int32)
        positions = np.full(batch, prefix + own - 1, np.int32)
        step = Batch(rows + 5, positions, rows, tables)

        def call() -> None:
            self.backend.next_tokens(self.backend.forward(step), greedy(batch))

        return self.clock.wall(call, repeats=10)

    def step_bytes(self, batch: int, prefix: int, own: int, *, shared: bool) -> float:
        """That a step has to move: weights, but for the embedding's rows, and the cache."""
        tokens = prefix + batch * own if shared else batch * (prefix + own)
        embedding = self.config.vocab_size * self.config.hidden_size * 2
        cache = tokens * self.backend.block_bytes / BLOCK
        return float(self.backend.weight_bytes - embedding + cache)


def rows(
    clock: Clock, limits: Limits, config: ModelConfig, name: str, *, invariant: bool = False
) -> list[Row]:
    prefix, own, batches = (64, 5, (1, 2)) if clock.small else (1024, 200, (1, 8, 32, 128))
    steps = Steps(clock, config, batches[-1], prefix + own, invariant=invariant)
    part = "step, invariant" if invariant else "step"
    seconds = steps.prefill(prefix)
    found = [Row(part, f"{name}: prefill of {prefix}", seconds, tokens=prefix / seconds)]
    for batch in batches:
        for shared in (False, True) if batch > 1 else (False,):
            took = steps.decode(batch, prefix, own, shared=shared)
            if took is None:
                continue
            moved = steps.step_bytes(batch, prefix, own, shared=shared)
            what = f"{name}: decode at batch {batch}{', prefix shared' if shared else ''}"
            share = moved / took / limits.copy
            found.append(Row(part, what, took, memory=share, tokens=batch / took))
    steps.backend.close()
    return found
