"""Continuous batching: requests go in and come out finished. One `step` is a forward call.

A step reads the next token of every running sample, and at most `chunk` tokens of prompts. No row's
result depends on what else is in the step (the backend's promise), so what is scheduled here can
change how soon an answer comes, and never the answer.

A sample is a sequence from the start: those of one request read its prompt as equal prompts do, the
first of them for all. Sequences begin in the order of the queue, what is urgent first and beside
the batch. One that finds no memory keeps all behind it waiting: whoever passed it might do so for
ever. One whose beginning another prompt reads just now waits for that and lets others pass.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate, islice
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import Backend, HeadScores, Hidden, Sampled
from .errors import CapacityError, NumericsError
from .kv_cache import KVCache, common_run
from .scheduler_batch import Judged, Read, SampleBatches, forward_batch, judged, logprobs_at, shares
from .scheduler_requests import Generation, Request, Sequence
from .scheduler_samples import Sample

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Scheduler:
    """Owns requests from `submit` until they are finished. Only `cancel` may come at any time."""

    def __init__(
        self, backend: Backend, cache: KVCache, tokenizer: Tokenizer, *, max_batch: int, chunk: int
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._chunk = chunk
        self._waiting: deque[tuple[Request, Sample | None]] = deque()
        self._running: list[Sequence] = []
        self._prompts: list[Sequence] = []  # of these, that are not read to the end; oldest first
        self._cancelled: deque[Request] = deque()
        self._how = SampleBatches()

    def submit(self, request: Request) -> None:
        """CapacityError as `check` says."""
        self.check(request)
        samples: list[Sample | None] = [*request.samples] or [None]
        new = [(request, sample) for sample in samples]
        if request.urgent:
            self._waiting.extendleft(reversed(new))
        else:
            self._waiting += new

    def check(self, request: Request) -> None:
        """CapacityError where it could not run were everything else finished and gone."""
        if (error := self._never(request)) is not None:
            raise error

    def _never(self, request: Request) -> CapacityError | None:
        room = self._cache.room(request.ids, request.rows_from)
        blocks = self._cache.blocks_for(request.tokens)
        if blocks <= room:
            return None
        return CapacityError(
            f"{request.label}: {len(request.ids)} prompt tokens and room for "
            f"{request.tokens - len(request.ids)} more need {blocks} cache blocks of "
            f"{self._cache.block_size} tokens, and at most {room} of the {self._cache.blocks} "
            "can be free for it; raise kv_cache_gib or lower max_tokens"
        )

    def cancel(self, request: Request) -> None:
        """It ends with what it has, at the next `drop_cancelled`. Any thread, at any time."""
        self._cancelled.append(request)

    def drop_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.popleft()
            if not request.finished:
                self._end(request)

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences wait and how many run."""
        return len(self._waiting), len(self._running)

    def step(self) -> None:
        """Advance all that runs. The error of one request is set on it, and ends only that one."""
        self.drop_cancelled()
        plan, hidden = self._forward(self._plan())
        if hidden is None:
            return
        sequences = [read.sequence for read in plan]
        if self._prompts:
            sequences, hidden = self._read_prompts(plan, hidden)
        self._choose(sequences, hidden)

    # What to read

    def _plan(self) -> list[Read]:
        while waiting := len(self._waiting):
            self._admit()
            if self._running:
                break
            if len(self._waiting) == waiting:
                self._cache.clear()
                self._admit()
                assert self._running
        decoding = len(self._running) > len(self._prompts)
        given = shares(self._prompts, -(-self._chunk // 2) if decoding else self._chunk)
        for s in self._running:
            grown = self._cache.grow(s.leaf, s.leaf.end + given.get(s, 1))  # one, of a sample
            if grown or not s.table:
                s.table = np.array(self._cache.table(s.leaf), np.int32).tobytes()
        self._running.sort(key=attrgetter("table"))  # who shares blocks, beside each other
        return [
            Read(s, start := s.leaf.end, s.ids[start : start + count])
            for s in self._running
            if (count := given.get(s, 1))
        ]

    def _admit(self) -> None:
        """Begin those whose turn it is; no more are looked at than could run."""
        for request, sample in list(islice(self._waiting, self._max_batch)):
            if not request.finished:
                usual = sum(not sequence.request.urgent for sequence in self._running)
                if usual == self._max_batch and not request.urgent:
                    break
                leads = sample is None or sample is request.samples[0]
                limit = request.rows_from if leads else len(request.ids) - 1
                if self._is_being_read(request, limit):
                    continue
                blocks = self._cache.blocks_for(request.tokens)
                leaf = self._cache.attach(request.ids, limit, blocks)
                if leaf is not None:
                    self._begin(Sequence(request, list(request.ids), leaf, sample, leads))
                elif (error := self._never(request)) is None:
                    break
                else:  # a prefix that was pinned since has taken its room
                    request.error = error
                    self._end(request)
            self._waiting.remove((request, sample))

    def _begin(self, sequence: Sequence) -> None:
        sequence.request.begin(cached=sequence.leaf.end)
        self._running.append(sequence)
        if sequence.leads or sequence.pending > 1:  # others find their prompt read
            self._prompts.append(sequence)

    def _is_being_read(self, request: Request, limit: int) -> bool:
        """Another prompt that is read just now will leave blocks in the cache for this one."""
        if not self._prompts:
            return False
        size, ids = self._cache.block_size, request.ids[:limit]
        _, cached = self._cache.match(ids, limit)
        return any(
            (s.leads and s.request is request) or common_run(s.ids, ids) // size > cached // size
            for s in self._prompts
        )

    # What becomes of it

    def _forward(self, plan: list[Read]) -> tuple[list[Read], Hidden | None]:
        """What was read, all but the requests that fail, and its hidden states [T, C]."""
        while plan:
            batch = forward_batch(plan)
            try:
                hidden = self._backend.forward(batch)  # [T, C]
                if self._prompts:  # of samples every row is looked at when it chooses
                    self._backend.check(hidden)
            except NumericsError as error:
                request = plan[int(batch.sequences[error.row])].sequence.request
                self._fail(request, error, int(batch.positions[error.row]))
                plan = [read for read in plan if not read.sequence.request.finished]
                continue
            for sequence, _, ids in plan:
                self._cache.append(sequence.leaf, ids)
            return plan, hidden
        return [], None

    def _read_prompts(self, plan: list[Read], hidden: Hidden) -> tuple[list[Sequence], Hidden]:
        """See to the prompts among what was read.

        Returns the samples whose next token is due, and the rows [M, C] that choose them.
        """
        ends = list(accumulate(len(ids) for _, _, ids in plan))
        pieces = [range(end - len(ids), end) for (_, _, ids), end in zip(plan, ends, strict=True)]
        for read, rows in zip(plan, pieces, strict=True):
            self._keep(read, hidden[rows.start : rows.stop])
        self._score([j for r, p in zip(plan, pieces, strict=True) if (j := judged(r, p))], hidden)
        self._prompts = [s for s in self._prompts if s.pending]
        due, last = [], []
        for (sequence, _, _), end in zip(plan, ends, strict=True):
            if sequence.pending or sequence.request.finished:
                continue
            if sequence.sample is None:
                self._end(sequence.request)
            else:
                due.append(sequence)
                last.append(end - 1)
        return due, hidden[last]

    def _keep(self, read: Read, rows: Hidden) -> None:
        """Put the hidden states of a prompt away where they are wanted."""
        request = read.sequence.request
        first = max(request.rows_from, read.start)
        if request.kept is None or first >= read.start + len(rows):
            return
        try:
            request.kept.append(self._backend.to_host(rows[first - read.start :]))
        except NumericsError as error:
            self._fail(request, error, first + error.row)

    def _score(self, judged: list[Judged], hidden: Hidden) -> None:
        """One call of the head for all rows that want as many of the likeliest tokens."""
        judged = [item for item in judged if not item.request.finished]
        while judged:
            top_k = judged[0].scored.top_k
            group = [item for item in judged if item.scored.top_k == top_k]
            ends = np.cumsum([len(item.targets) for item in group])
            rows = [row for item in group for row in item.rows]  # [M]
            targets = np.array([t for item in group for t in item.targets], np.int32)  # [M]
            try:
                scores = self._backend.score(hidden[rows], targets, top_k)
            except NumericsError as error:
                item = group[int(np.searchsorted(ends, error.row, side="right"))]
                before = int(ends[group.index(item)]) - len(item.targets)
                self._fail(item.request, error, item.first + error.row - before)
            else:
                for item, end in zip(group, ends, strict=True):
                    own = slice(end - len(item.targets), end)
                    item.scored.parts.append(HeadScores._make(column[own] for column in scores))
                judged = [item for item in judged if item.scored.top_k != top_k]
            judged = [item for item in judged if not item.request.finished]

    def _choose(self, chosen: list[Sequence], hidden: Hidden) -> None:
        """The next token of each sample, from the hidden state [M, C] of the token before."""
        while chosen:
            samples = [sequence.sample for sequence in chosen if sequence.sample is not None]
            how = self._how.next(samples, [len(sequence.ids) for sequence in chosen])
            try:
                sampled = self._backend.next_tokens(hidden, how)
            except NumericsError as error:
                failed = chosen[error.row]
                self._fail(failed.request, error, len(failed.ids) - 1)
                rows = [row for row, s in enumerate(chosen) if not s.request.finished]
                chosen, hidden = [chosen[row] for row in rows], hidden[rows]
            else:
                self._accept(chosen, sampled)
                return

    def _accept(self, sequences: list[Sequence], sampled: Sampled) -> None:
        tokens, logprobs = sampled.token_ids.tolist(), sampled.logprob.tolist()
        for row, sequence in enumerate(sequences):
            sample, request, token = sequence.sample, sequence.request, tokens[row]
            assert sample is not None and isinstance(request, Generation)
            k = sample.params.logprobs
            told = None if k is None else logprobs_at(sampled, row, token, k, self._tokenizer)
            request.note(sample, sample.accept(token, logprobs[row], told))
            if sample.finish_reason is None:
                sequence.ids.append(token)
            else:
                self._end_sample(sequence, request)

    # How it ends

    def _end_sample(self, sequence: Sequence, request: Generation) -> None:
        self._running.remove(sequence)
        self._cache.release(sequence.leaf)
        if all(sample.finish_reason is not None for sample in request.samples):
            self._end(request)

    def _end(self, request: Request, *, keep: bool = True) -> None:
        """Complete or not: nothing of it runs or holds blocks after this."""
        for sequence in [s for s in self._running if s.request is request]:
            self._running.remove(sequence)
            if request.pin and keep and not sequence.pending:
                self._cache.pin(sequence.leaf)
                request.pinned = sequence.leaf
            else:
                self._cache.release(sequence.leaf, keep=keep)
        self._prompts = [s for s in self._prompts if s.request is not request]
        request.finish()

    def _fail(self, request: Request, error: NumericsError, position: int) -> None:
        layer = error.layer
        where = "the head" if layer is None else "the embedding" if layer < 0 else f"layer {layer}"
        request.error = NumericsError(
            f"{request.label}: {where} gives a value that is not finite at position {position}; "
            "look for NaN or inf in the checkpoint",
            layer=layer,
            row=position,
        )
        self._end(request, keep=False)
