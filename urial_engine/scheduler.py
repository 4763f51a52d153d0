"""Continuous batching: requests go in and come out finished. One `step` is a forward call.

A step reads the next token of every running sample, then up to `chunk` tokens of prompts, oldest
first. No row's result depends on what else is in the step (the backend's promise), so what is
scheduled here can change how soon an answer comes, and never the answer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .backends.base import F32, Backend, Sampled
from .errors import CapacityError, NumericsError
from .kv_cache import KVCache, common_run
from .scheduler_batch import Read, forward_batch, logprobs_at, sample_batch, score_rows
from .scheduler_requests import Generation, Request, Scored, Sequence

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Judged(NamedTuple):
    """Rows [n, C] of a prompt from position `first` on, and the token that each has to judge."""

    request: Request
    scored: Scored
    first: int
    rows: F32
    targets: list[int]


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
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []  # left the queue and are not finished
        self._running: list[Sequence] = []  # of these; oldest first
        self._cancelled: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """CapacityError as `check` says."""
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """Settle the request's `blocks` and `slots`.

        CapacityError where it could not run were everything else finished and gone.
        """
        size, room = self._cache.block_size, self._cache.room(request.ids, request.rows_from)
        if not request.claim(size, room, self._max_batch):
            raise CapacityError(
                f"{request.label}: {len(request.ids)} prompt tokens and room for "
                f"{request.tokens - len(request.ids)} more need {request.blocks} cache blocks of "
                f"{size} tokens, and at most {room} of the {self._cache.blocks} can be free for "
                "it; raise kv_cache_gib or lower max_tokens"
            )

    def cancel(self, request: Request) -> None:
        """It ends with what it has, at the next `drop_cancelled`. Any thread, at any time."""
        self._cancelled.append(request)

    def drop_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.popleft()
            if not request.finished:
                self._end(request)

    def step(self) -> None:
        """Advance all that runs. The error of one request is set on it, and ends only that one."""
        self.drop_cancelled()
        read = self._forward(self._plan())
        prompts = [(s, rows) for s, rows in read if s.sample is None]
        chosen = [(s, rows[-1]) for s, rows in read if s.sample is not None]
        self._score(self._keep(prompts))
        for sequence, rows in prompts:
            if sequence.pending == 0 and not sequence.request.finished:
                self._complete_prompt(sequence, rows[-1])
        for request in self._active:
            chosen += self._begin_samples(request)
        self._choose(chosen)

    # What to read

    def _plan(self) -> list[Read]:
        """Sequences that share blocks stand beside each other."""
        budget, counts = self._chunk, []
        for sequence in self._running:
            count = sequence.pending  # one, of a sample
            if sequence.sample is None:
                count = min(count, budget)
                budget -= count
            counts.append((sequence, count))
        while budget > 0 and (admitted := self._admit()):
            count = min(admitted.pending, budget)
            budget -= count
            counts.append((admitted, count))
        assert counts or self._active or not self._waiting
        for sequence, count in counts:
            self._cache.grow(sequence.leaf, sequence.leaf.end + count)
        plan = [Read(s, count, self._cache.table(s.leaf)) for s, count in counts if count]
        return sorted(plan, key=lambda read: read.table)

    def _admit(self) -> Sequence | None:
        """The request that waits longest, if there is room for it now."""
        if not self._waiting:
            return None
        request = self._waiting[0]
        busy = sum(active.slots for active in self._active)
        if busy + request.slots > self._max_batch or self._is_being_read(request):
            return None
        leaf = self._cache.attach(request.ids, request.rows_from, request.blocks)
        if leaf is None:
            return None
        self._waiting.popleft()
        sequence = Sequence(request, list(request.ids), leaf)
        request.begin(cached=leaf.end)
        self._active.append(request)
        self._running.append(sequence)
        return sequence

    def _is_being_read(self, request: Request) -> bool:
        """Another prompt that is read just now will leave blocks in the cache for this one."""
        size, ids = self._cache.block_size, request.ids[: request.rows_from]
        _, cached = self._cache.match(ids, len(ids))
        prompts = [s.ids for s in self._running if s.sample is None]
        return any(common_run(prompt, ids) // size > cached // size for prompt in prompts)

    # What becomes of it

    def _forward(self, plan: list[Read]) -> list[tuple[Sequence, F32]]:
        """The hidden states [count, C] of every sequence that is read, but for those that fail."""
        while plan:
            batch = forward_batch(plan)
            try:
                hidden = self._backend.forward(batch)  # [T, C]
            except NumericsError as error:
                request = plan[int(batch.sequences[error.row])].sequence.request
                self._fail(request, error, int(batch.positions[error.row]))
                plan = [read for read in plan if not read.sequence.request.finished]
                continue
            for sequence, tokens, _ in plan:
                end = sequence.leaf.end
                self._cache.append(sequence.leaf, sequence.ids[end : end + tokens])
            pieces = np.split(hidden, np.cumsum([read.tokens for read in plan])[:-1])
            return [(read.sequence, rows) for read, rows in zip(plan, pieces, strict=True)]
        return []

    def _keep(self, prompts: list[tuple[Sequence, F32]]) -> list[Judged]:
        """Put the wanted hidden states away, and say which rows are to be scored."""
        judged = []
        for sequence, rows in prompts:
            request, start = sequence.request, sequence.leaf.end - len(rows)
            first = max(request.rows_from, start)
            wanted = rows[first - start :]
            if request.kept is not None:
                request.kept.append(wanted.copy())  # a view would keep all rows of the step
            if request.scored is not None:
                targets = request.scored.targets[first - request.rows_from :][: len(wanted)]
                wanted = wanted[: len(targets)]
                judged.append(Judged(request, request.scored, first, wanted, targets))
        return [item for item in judged if item.targets]

    def _score(self, judged: list[Judged]) -> None:
        """One call of the head for all rows that want as many of the likeliest tokens."""
        while judged:
            top_k = judged[0].scored.top_k
            group = [item for item in judged if item.scored.top_k == top_k]
            ends = np.cumsum([len(item.targets) for item in group])
            hidden = np.concatenate([item.rows for item in group])  # [M, C]
            targets = np.array([t for item in group for t in item.targets], np.int32)  # [M]
            try:
                scores = self._backend.score(hidden, targets, top_k)
            except NumericsError as error:
                item = group[int(np.searchsorted(ends, error.row, side="right"))]
                before = int(ends[group.index(item)]) - len(item.targets)
                self._fail(item.request, error, item.first + error.row - before)
            else:
                for item, end in zip(group, ends, strict=True):
                    item.scored.parts.append(score_rows(scores, end - len(item.targets), end))
                judged = [item for item in judged if item.scored.top_k != top_k]
            judged = [item for item in judged if not item.request.finished]

    def _complete_prompt(self, sequence: Sequence, row: F32) -> None:
        request = sequence.request
        if isinstance(request, Generation):
            self._running.remove(sequence)
            request.trunk, request.prompt_row = sequence, row.copy()  # not all rows of the step
        else:
            self._end(request)

    def _begin_samples(self, request: Request) -> list[tuple[Sequence, F32]]:
        """As many as may run now, each with the row that chooses its first token."""
        begun: list[tuple[Sequence, F32]] = []
        if not isinstance(request, Generation) or request.prompt_row is None or not request.waiting:
            return begun
        running = sum(sequence.request is request for sequence in self._running)
        while request.waiting and running + len(begun) < request.slots:
            sequence = self._begin_sample(request)
            if sequence is None:
                break
            sequence.sample = request.waiting.popleft()
            begun.append((sequence, request.prompt_row))
        self._running += [sequence for sequence, _ in begun]
        if request.trunk is not None and not request.waiting:
            self._cache.release(request.trunk.leaf)
            request.trunk = None
        return begun

    def _begin_sample(self, request: Generation) -> Sequence | None:
        """A single sample goes on where the prompt ends; of several each gets its own tail."""
        trunk = request.trunk
        assert trunk is not None
        if len(request.samples) == 1:
            request.trunk = None
            return trunk
        leaf = self._cache.fork(trunk.leaf, self._cache.blocks_for(request.tokens))
        return None if leaf is None else Sequence(request, list(request.ids), leaf)

    def _choose(self, chosen: list[tuple[Sequence, F32]]) -> None:
        """The next token of each sample, from the hidden state of the token before."""
        while chosen:
            samples = [sequence.sample for sequence, _ in chosen if sequence.sample is not None]
            hidden = np.stack([row for _, row in chosen])  # [M, C]
            try:
                sampled = self._backend.next_tokens(hidden, sample_batch(samples))
            except NumericsError as error:
                sequence = chosen[error.row][0]
                self._fail(sequence.request, error, len(sequence.ids) - 1)
                chosen = [item for item in chosen if not item[0].request.finished]
            else:
                self._accept([sequence for sequence, _ in chosen], sampled)
                return

    def _accept(self, sequences: list[Sequence], sampled: Sampled) -> None:
        for row, sequence in enumerate(sequences):
            sample, request = sequence.sample, sequence.request
            assert sample is not None and isinstance(request, Generation)
            token, logprob = sampled.token_ids[row].item(), sampled.logprob[row].item()
            k = sample.params.logprobs
            told = None if k is None else logprobs_at(sampled, row, token, k, self._tokenizer)
            request.note(sample.accept(token, logprob, told))
            if sample.finish_reason is None:
                sequence.ids.append(token)
            else:
                self._end_sample(sequence, request)

    # How it ends

    def _end_sample(self, sequence: Sequence, request: Generation) -> None:
        self._running.remove(sequence)
        self._cache.release(sequence.leaf)
        unfinished = sum(sample.finish_reason is None for sample in request.samples)
        request.slots = min(request.slots, unfinished)
        if unfinished == 0:
            self._end(request)

    def _end(self, request: Request, *, keep: bool = True) -> None:
        """Complete or not: nothing of it runs, waits or holds blocks after this."""
        sequences = [sequence for sequence in self._running if sequence.request is request]
        self._running = [s for s in self._running if s.request is not request]
        for sequence in [*sequences, *filter(None, [request.trunk])]:
            self._cache.release(sequence.leaf, keep=keep)
        request.trunk = None
        queue = self._waiting if request.started is None else self._active
        if request in queue:
            queue.remove(request)
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
