"""A tiny Mistral whose weights are arrays in memory: a test may plant in them what it likes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from urial_engine.backends import Batch, SampleBatch, open_backend
from urial_engine.backends.reference import ReferenceBackend
from urial_engine.config import ModelConfig
from urial_engine.weights import parameter_shapes

CONFIG = {
    "model_type": "mistral",
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 50,
    "max_position_embeddings": 512,
}
TEXT = [int(i) for i in np.random.default_rng(1).integers(37, size=150)]
Arrays = dict[str, NDArray[np.float32]]


def random_weights(tied: bool = False) -> Arrays:
    rng = np.random.default_rng(2)
    shapes = parameter_shapes(ModelConfig.from_dict(CONFIG), tied)
    return {n: rng.normal(size=s, scale=0.4).astype(np.float32) for n, s in shapes.items()}


def open_tiny(arrays: Arrays | None = None, dtype: str = "auto") -> ReferenceBackend:
    """The tiny model from arrays in memory, through the door that everyone uses."""
    arrays = random_weights() if arrays is None else arrays
    weights: Any = SimpleNamespace(
        config=ModelConfig.from_dict(CONFIG),
        tied="lm_head.weight" not in arrays,
        read=arrays.__getitem__,
        finish=lambda: None,
    )
    backend = open_backend("reference", weights, dtype=dtype)
    assert isinstance(backend, ReferenceBackend)
    return backend


def feed(
    backend: ReferenceBackend, table: Sequence[int], start: int, end: int, text: list[int] = TEXT
) -> NDArray[Any]:
    """Positions start .. end of one text -> hidden [end - start, C]."""
    positions = np.arange(start, end, dtype=np.int32)
    ids = np.array(text[start:end], np.int32)
    tables = np.array([table], np.int32)
    return backend.forward(Batch(ids, positions, np.zeros_like(positions), tables))


def whole(backend: ReferenceBackend) -> NDArray[Any]:
    backend.allocate(3)
    return feed(backend, [0, 1, 2], 0, len(TEXT))


def how(rows: int, **fields: Any) -> SampleBatch:
    """Greedy for every row, but for `fields`."""
    zero, none = np.zeros(rows, np.float32), np.zeros(0, np.int32)
    plain = SampleBatch(
        temperature=zero,
        top_k=np.zeros(rows, np.int32),
        top_p=zero + 1,
        min_p=zero,
        repetition_penalty=zero + 1,
        presence_penalty=zero,
        frequency_penalty=zero,
        seed=np.zeros(rows, np.uint64),
        sample=np.zeros(rows, np.uint32),
        position=np.arange(rows, dtype=np.uint32),
        penalty_offsets=np.zeros(rows + 1, np.int32),
        penalty_ids=none,
        penalty_repeats=none.astype(np.uint8),
        penalty_counts=none,
        banned_offsets=np.zeros(rows + 1, np.int32),
        banned_ids=none,
    )
    return plain._replace(**fields)
