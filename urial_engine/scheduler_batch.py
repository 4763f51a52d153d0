"""The arrays of a step: what runs goes in; what the backend takes, and records of what it found,
come out."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .backends.base import I32, Batch, HeadScores, SampleBatch, Sampled
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


def shares(prompts: list[Sequence], left: int) -> dict[Sequence, int]:
    """How many tokens of each of `prompts`, the oldest first, a step reads of the `left` ones.

    Half of them are the oldest prompt's, so that it ends however many come after it; the rest go to
    the shortest first, so that a short one does not wait for a long one. (While samples wait for
    the step, half as much is given: that bounds the time between two of their tokens.)
    """
    given = dict.fromkeys(prompts, 0)
    shortest_first = sorted(prompts, key=lambda prompt: prompt.pending)
    oldest = [(prompt, -(-left // 2)) for prompt in prompts[:1]]
    for prompt, most in oldest + [(prompt, left) for prompt in shortest_first]:
        count = min(prompt.pending - given[prompt], most, left)
        given[prompt] += count
        left -= count
    return given


def forward_batch(plan: list[Read]) -> Batch:
    """The arrays of one forward call, made by few kinds of calls: the weights have driven all code
    out of the processor's caches, and what is called first takes many times as long as the next."""
    tokens = [token for _, _, ids in plan for token in ids]
    positions = [start + i for _, start, ids in plan for i in range(len(ids))]
    rows = [row for row, (_, _, ids) in enumerate(plan) for _ in ids]
    token_ids, at, sequences = (np.array(x, np.int32) for x in (tokens, positions, rows))  # [T]
    width = max([len(s.table) for s, _, _ in plan])
    tables = b"".join([s.table.ljust(width, b"\0") for s, _, _ in plan])
    block_tables = np.ndarray((len(plan), width // 4), np.int32, tables)  # [B, blocks]
    return Batch(token_ids, at, sequences, block_tables)


class Judged(NamedTuple):
    """Rows of the step from position `first` of a prompt on, and the token that each judges."""

    request: Request
    scored: Scored
    first: int
    rows: range
    targets: list[int]


def judged(read: Read, rows: range) -> Judged | None:
    """Which of the rows that a sequence read are to be scored."""
    request, scored = read.sequence.request, read.sequence.request.scored
    if scored is None or not read.sequence.leads:
        return None
    first = max(request.rows_from, read.start)
    targets = scored.targets[first - request.rows_from :][: max(read.start + len(rows) - first, 0)]
    wanted = rows[first - read.start :][: len(targets)]
    return Judged(request, scored, first, wanted, targets) if targets else None


class SampleBatches:
    """How to choose the next tokens of M samples, step after step.

    For the same samples as before only what can have changed is made again.
    """

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._settings: dict[str, Any] = {}
        self._batch: SampleBatch | None = None  # the last one, if only positions change in it

    def next(self, samples: list[Sample], positions: list[int]) -> SampleBatch:
        """For the tokens at these absolute positions [M]."""
        if samples != self._samples:
            records = np.frombuffer(b"".join([s.settings for s in samples]), SETTINGS)  # [M]
            self._settings = {name: records[name].copy() for name in SETTINGS.fields or ()}
            self._samples, self._batch = samples, None
        place = np.array(positions, np.uint32)
        if self._batch is not None:
            return self._batch._replace(position=place)
        ids, ids_offsets = _ragged([s.penalties.ids if s.penalties else NOTHING for s in samples])
        counts, _ = _ragged([s.penalties.counts if s.penalties else NOTHING for s in samples])
        banned, banned_offsets = _ragged([s.banned for s in samples])
        batch = SampleBatch(
            **self._settings,
            position=place,
            penalty_offsets=ids_offsets,
            penalty_ids=ids,
            penalty_repeats=np.ndarray(len(ids), np.uint8, b"\1" * len(ids)),
            penalty_counts=counts,
            banned_offsets=banned_offsets,
            banned_ids=banned,
            top_logprobs=max([s.top_logprobs for s in samples]),
        )
        if not any(s.penalties is not None or s.params.min_tokens for s in samples):
            self._batch = batch
        return batch


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
