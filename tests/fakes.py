"""A backend without a model, for the modules above the backends: exact, fast, and watchful.

Its cache holds token ids, and a row's hidden state is a hash of every token that the block table
leads to. So a wrong block, position or order changes what is chosen, as it would with a real
model, and equal ids give equal bits. It asserts everything that `Batch` promises.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from urial_engine.backends.base import (
    F32,
    I32,
    Backend,
    Batch,
    HeadComparison,
    HeadScores,
    SampleBatch,
    Sampled,
)
from urial_engine.config import ModelConfig
from urial_engine.errors import NumericsError
from urial_engine.kernels import rank, sample
from urial_engine.kv_cache import KVCache

VOCAB = 40
BAD_IN_LAYER, BAD_IN_HEAD = 38, 39  # token ids that give a NaN where their names say
Array = NDArray[Any]


def hidden_of(ids: Sequence[int]) -> F32:
    """[2] of the last of these ids: a hash of all, exact in fp32, and the last id."""
    return np.array([zlib.crc32(np.array(ids, np.int32).tobytes()) >> 8, ids[-1]], np.float32)


def logits_of(hidden: Array) -> F32:
    """[V]. A third of the tokens are tied with others."""
    z = np.random.default_rng(int(hidden[0])).normal(size=VOCAB) * 2
    z = np.where(np.arange(VOCAB) % 3 == 0, np.round(z), z)
    z[[BAD_IN_LAYER, BAD_IN_HEAD]] = -50  # only a prompt holds these
    return z.astype(np.float32)


class FakeBackend:
    """Implements `Backend`. `reads` counts the tokens of each forward call."""

    name = "fake"
    build = "1"
    variant = "exact"
    dtype = "float32"
    threads = 1
    weight_bytes = 0
    max_top_k = VOCAB
    config = ModelConfig.from_dict(
        {
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": 2,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 256,
        }
    )

    def __init__(self, block_size: int = 4) -> None:
        self.block_size = block_size
        self.block_bytes = 8 * block_size
        self.reads: list[int] = []

    def cache_room(self, max_batch: int, context: int, chunk: int) -> int:
        return 1 << 30

    def allocate(self, blocks: int) -> None:
        self.pool = np.zeros((blocks, self.block_size), np.int64)  # [blocks, P] id + 1, 0: nothing

    def forward(self, batch: Batch) -> F32:
        tokens, positions, rows = batch.token_ids, batch.positions, batch.sequences
        self.reads.append(len(tokens))
        assert all(a.dtype == np.int32 for a in (tokens, positions, rows, batch.block_tables))
        assert len(tokens) == len(positions) == len(rows) > 0
        steps = list(zip(np.diff(rows), np.diff(positions), strict=True))
        assert all(row == 1 or (row, position) == (0, 1) for row, position in steps)
        assert rows[0] == 0
        assert rows[-1] == len(batch.block_tables) - 1
        tables = [tuple(table) for table in batch.block_tables]
        for index in range(len(tables[0])):
            beside = [start for start, _ in groupby(table[: index + 1] for table in tables)]
            assert len(beside) == len(set(beside)), "who shares blocks stands beside each other"
        for token, position, row in zip(tokens, positions, rows, strict=True):
            index, slot = divmod(int(position), self.block_size)
            self.pool[batch.block_tables[row, index], slot] = token + 1
        for row in np.flatnonzero(tokens == BAD_IN_LAYER):
            raise NumericsError("planted", layer=0, row=int(row))
        read = [self._text(batch.block_tables[r], p) for r, p in zip(rows, positions, strict=True)]
        return np.stack([hidden_of(text) for text in read])

    def _text(self, table: I32, position: np.int32) -> Array:
        """The ids at positions 0 .. position."""
        blocks = table[: position // self.block_size + 1]
        text = self.pool[blocks].reshape(-1)[: position + 1]
        assert text.all(), "a token is read before it was written"
        return text - 1

    def check(self, hidden: F32) -> None:
        """`forward` has raised it."""

    def to_host(self, hidden: F32) -> F32:
        return hidden.copy()

    def logits(self, hidden: F32) -> F32:
        for row in np.flatnonzero(hidden[:, 1] == BAD_IN_HEAD):
            raise NumericsError("planted", layer=None, row=int(row))
        return np.stack([logits_of(row) for row in hidden])

    def next_tokens(self, hidden: F32, how: SampleBatch) -> Sampled:
        z = self.logits(hidden)  # [M, V]
        ids = np.array([choose(z[row], how, row) for row in range(len(z))], np.int32)
        scores = self.score(hidden, ids, how.top_logprobs)
        return Sampled(ids, scores.logprob, scores.rank, scores.top_ids, scores.top_logprobs)

    def score(self, hidden: F32, targets: I32, top_k: int) -> HeadScores:
        assert len(hidden) == len(targets)
        return HeadScores(*rank.reference(self.logits(hidden), targets, top_k))

    def compare(
        self, hidden: F32, targets: I32, top_k: int, aligned: Backend, aligned_hidden: F32
    ) -> HeadComparison:
        kl = rank.compare(self.logits(hidden), aligned.logits(aligned_hidden))
        base = self.score(hidden, targets, top_k)
        return HeadComparison(base, aligned.score(aligned_hidden, targets, top_k), *kl)

    def copy_block(self, source: int, target: int) -> None:
        assert source != target
        self.pool[target] = self.pool[source]

    def read_block(self, block: int) -> NDArray[np.uint8]:
        return self.pool[block].view(np.uint8).copy()

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        self.pool[block] = data.view(np.int64)

    def close(self) -> None:
        self.allocate(0)


def choose(z: F32, how: SampleBatch, row: int) -> int:
    """One token from one row of logits [V], by the reference."""
    penalised = slice(how.penalty_offsets[row], how.penalty_offsets[row + 1])
    banned = slice(how.banned_offsets[row], how.banned_offsets[row + 1])
    scalars = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    fields = (*scalars, "presence_penalty", "frequency_penalty")
    return sample.reference(
        z,
        sample.uniform(int(how.seed[row]), int(how.sample[row]), int(how.position[row])),
        penalty_ids=how.penalty_ids[penalised],
        penalty_repeats=how.penalty_repeats[penalised],
        penalty_counts=how.penalty_counts[penalised],
        banned_ids=how.banned_ids[banned],
        **{name: getattr(how, name)[row] for name in fields},
    )


def check_books(cache: KVCache) -> None:
    """Every block is free or in one segment, the tree is well formed, and the sums are right."""
    segments = list(cache.segments())
    blocks = cache._free + [block for segment in segments for block in segment.blocks]
    assert sorted(blocks) == list(range(cache.blocks))
    held = sum(len(s.blocks) for s in segments if s.users)
    assert cache.available == cache.blocks - held - sum(s.quota for s in segments) >= 0
    for segment in segments:
        assert segment.parent is not None
        assert segment in segment.parent.children
        assert segment.start == segment.parent.end
        assert segment.start % cache.block_size == 0
        assert not segment.children or segment.end % cache.block_size == 0
        assert not (segment.live and segment.children)
        pins = segment.users - segment.live - sum(child.users for child in segment.children)
        assert pins == 0 or (segment.pinned and pins == 1)
        needed = cache.blocks_for(len(segment.tokens))
        assert len(segment.blocks) == needed or (segment.live and len(segment.blocks) > needed)


class FakeTokenizer:
    """Each id is a word of two to four letters of a small alphabet, so that stop strings meet."""

    vocab_size = VOCAB
    words = tuple("abc"[i % 3] * (1 + i % 2) + "xyab"[i % 4 :: 2] for i in range(VOCAB))

    def token_text(self, token_id: int) -> str:
        return self.words[token_id]

    def stream(self, **_: bool) -> Any:
        return SimpleNamespace(push=self.token_text, finish=str)
