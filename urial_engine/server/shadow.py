"""New tokens of an answer go in; what a second context, or a second model, says of each comes out.

It reads the same conversation in its own form and the answer's token ids behind it. What it has
read stays in its cache, so each look costs a row for each new token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..outputs import StreamEvent
from ..scheduler_requests import Scored
from .models import Asked, Served
from .refusal import bad
from .worker import FOR_WHOLE, Worker


@dataclass(frozen=True, slots=True)
class Ranked:
    """As `ScoreOutput` has them, of one token."""

    rank: int
    ties: int
    logprob: float


class Shadow:
    """The second reader of one answer."""

    def __init__(
        self, worker: Worker, served: Served, asked: Asked, deadline: float | None
    ) -> None:
        self._worker = worker
        self._engine = served.engine
        self._deadline = deadline
        self._ids = served.engine.token_ids(asked.prompt, "compare_with", asked.prefix)

    @staticmethod
    def check(served: Served, other: Served) -> None:
        """Token ids of one model are given to the other."""
        own, theirs = served.engine.tokenizer, other.engine.tokenizer
        if own is not theirs and own.fingerprint != theirs.fingerprint:
            message = f"{other.name!r} has another vocabulary than {served.name!r}"
            raise bad(f"{message}: its ranks of these tokens mean nothing", "compare_with")

    async def rank(self, events: Sequence[StreamEvent]) -> list[Ranked]:
        """Of the token of each event, which follow on those of the last call."""
        new = [token for event in events for token in event.token_ids]
        request = self._engine.scoring(self._ids, new, 0, "compare_with", urgent=True)
        self._ids = self._ids + new
        with self._worker.begin(
            self._engine, [request], self._deadline, every=FOR_WHOLE, admitted=True
        ) as (job,):
            await job.done()
        assert isinstance(request.scored, Scored)
        scores = request.scored.joined()
        columns = (scores.rank.tolist(), scores.ties.tolist(), scores.logprob.tolist())
        return [Ranked(*row) for row in zip(*columns, strict=True)]
