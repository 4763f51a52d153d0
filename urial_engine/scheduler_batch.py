"""The arrays of a step: what runs goes in; what the backend takes, and records of what it found,
come out."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backends.base import Batch, HeadScores, SampleBatch, Sampled
from .outputs import Logprob, Logprobs
from .scheduler_requests import Sequence
from .scheduler_samples import Sample

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Read(NamedTuple):
    """`tokens` more that one sequence reads in this step."""

    sequence: Sequence
    tokens: int
    table: list[int]  # physical block at each absolute block index


def forward_batch(plan: list[Read]) -> Batch:
    """The arrays of one forward call."""
    spans = [slice(s.leaf.end, s.leaf.end + tokens) for s, tokens, _ in plan]
    tables = np.zeros((len(plan), max(len(read.table) for read in plan)), np.int32)  # [B, blocks]
    for row, read in enumerate(plan):
        tables[row, : len(read.table)] = read.table
    pairs = list(zip(plan, spans, strict=True))
    return Batch(
        token_ids=np.array([t for read, span in pairs for t in read.sequence.ids[span]], np.int32),
        positions=np.array([p for s in spans for p in range(s.start, s.stop)], np.int32),
        sequences=np.repeat(np.arange(len(plan), dtype=np.int32), [read.tokens for read in plan]),
        block_tables=tables,
    )


def score_rows(scores: HeadScores, start: int, end: int) -> HeadScores:
    """Rows start .. end of them."""
    columns = {f.name: getattr(scores, f.name)[start:end] for f in fields(scores)}
    return HeadScores(**columns)


def sample_batch(samples: Items[Sample]) -> SampleBatch:
    """How to choose the next token of each of M samples."""

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.array([getattr(sample.params, name) for sample in samples], dtype)  # [M]

    ids, ids_offsets = _ragged([s.penalties.ids if s.penalties else () for s in samples])
    counts, _ = _ragged([s.penalties.counts if s.penalties else () for s in samples])
    banned, banned_offsets = _ragged([sorted(s.banned) for s in samples])
    return SampleBatch(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        seed=np.array([s.seed for s in samples], np.uint64),
        sample=np.array([s.index for s in samples], np.uint32),
        position=np.array([s.position for s in samples], np.uint32),
        penalty_offsets=ids_offsets,
        penalty_ids=ids,
        penalty_repeats=np.ones(len(ids), np.uint8),
        penalty_counts=counts,
        banned_offsets=banned_offsets,
        banned_ids=banned,
        top_logprobs=max(s.params.logprobs or 0 for s in samples),
    )


def _ragged(rows: Items[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All entries behind each other, and where each row's begin [M + 1]."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return np.concatenate([np.asarray(row, np.int32) for row in rows]), offsets


def logprobs_at(
    scores: Sampled | HeadScores, row: int, token: int, k: int, tokenizer: Tokenizer
) -> Logprobs:
    """The token that stands there, then the k likeliest."""
    text = tokenizer.token_text
    entry = {token: Logprob(scores.logprob[row].item(), scores.rank[row].item(), text(token))}
    likeliest = zip(scores.top_ids[row, :k], scores.top_logprobs[row, :k], strict=True)
    for place, (other, logprob) in enumerate(likeliest, start=1):
        if other != token:
            entry[other.item()] = Logprob(logprob.item(), place, text(other.item()))
    return entry
