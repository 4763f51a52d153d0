"""The arrays of a step: what runs goes in; what the backend takes, and records of what it found,
come out."""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .backends.base import F32, I32, Batch, HeadScores, SampleBatch, Sampled
from .outputs import Logprob, Logprobs
from .scheduler_requests import Request, Scored, Sequence
from .scheduler_samples import NOTHING, SETTINGS, Sample

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Read(NamedTuple):
    """What one sequence reads in a step: `ids`, the first of them at position `start`."""

    sequence: Sequence
    start: int
    ids: list[int]


def forward_batch(plan: list[Read]) -> Batch:
    """The arrays of one forward call."""
    spans = [range(start, start + len(ids)) for _, start, ids in plan]
    width = max([len(s.table) for s, _, _ in plan])
    tables = b"".join([s.table.ljust(width, b"\0") for s, _, _ in plan])
    return Batch(
        token_ids=np.array([token for _, _, ids in plan for token in ids], np.int32),
        positions=np.array([position for span in spans for position in span], np.int32),
        sequences=np.arange(len(plan), dtype=np.int32).repeat([len(ids) for _, _, ids in plan]),
        block_tables=np.frombuffer(tables, np.int32).reshape(len(plan), -1),  # [B, blocks]
    )


class Judged(NamedTuple):
    """Rows [n, C] of a prompt from position `first` on, and the token that each has to judge."""

    request: Request
    scored: Scored
    first: int
    rows: F32
    targets: list[int]


def put_away(plan: list[Read], pieces: list[F32]) -> list[Judged]:
    """Put the hidden states that are wanted away, and say which rows are to be scored."""
    judged = []
    for (sequence, start, _), rows in zip(plan, pieces, strict=True):
        request, first = sequence.request, max(sequence.request.rows_from, start)
        wanted = rows[first - start :]
        if request.kept is not None:
            request.kept.append(wanted.copy())  # a view would keep all rows of the step
        if request.scored is not None and sequence.leads:
            targets = request.scored.targets[first - request.rows_from :][: len(wanted)]
            wanted = wanted[: len(targets)]
            judged.append(Judged(request, request.scored, first, wanted, targets))
    return [item for item in judged if item.targets]


def score_rows(scores: HeadScores, start: int, end: int) -> HeadScores:
    """Rows start .. end of them."""
    return HeadScores._make(column[start:end] for column in scores)


def sample_batch(samples: Items[Sample], positions: Items[int]) -> SampleBatch:
    """How to choose the next token, at its absolute position, of each of M samples."""
    settings = np.frombuffer(b"".join([s.settings for s in samples]), SETTINGS)  # [M]
    ids, ids_offsets = _ragged([s.penalties.ids if s.penalties else NOTHING for s in samples])
    counts, _ = _ragged([s.penalties.counts if s.penalties else NOTHING for s in samples])
    banned, banned_offsets = _ragged([s.banned for s in samples])
    return SampleBatch(
        **{name: settings[name] for name in SETTINGS.fields or ()},
        position=np.array(positions, np.uint32),
        penalty_offsets=ids_offsets,
        penalty_ids=ids,
        penalty_repeats=np.ones(len(ids), np.uint8),
        penalty_counts=counts,
        banned_offsets=banned_offsets,
        banned_ids=banned,
        top_logprobs=max([s.top_logprobs for s in samples]),
    )


def _ragged(rows: list[I32]) -> tuple[I32, I32]:
    """All entries behind each other, and where each row's begin [M + 1]."""
    offsets = np.array([0, *accumulate(map(len, rows))], np.int32)
    return np.concatenate(rows) if offsets[-1] else NOTHING, offsets


def logprobs_at(
    scores: Sampled | HeadScores, row: int, token: int, k: int, tokenizer: Tokenizer
) -> Logprobs:
    """The token that stands there, then the k likeliest."""
    entry = {token: (scores.logprob[row].item(), scores.rank[row].item())}
    likeliest = zip(
        scores.top_ids[row, :k].tolist(), scores.top_logprobs[row, :k].tolist(), strict=True
    )
    for place, (other, logprob) in enumerate(likeliest, start=1):
        entry.setdefault(other, (logprob, place))
    return {id: Logprob(*found, tokenizer.token_text(id)) for id, found in entry.items()}
