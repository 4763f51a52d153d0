"""Tokens come in as the worker makes them; pieces of an answer go out as soon as they are certain.

A piece is a token with the text that it adds. In URIAL's form that waits until nothing that follows
can change it (`AnswerStream`), and the answer ends with its closing fence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from ..outputs import Logprobs, StreamEvent
from ..prompt import FENCE, UrialPrompt
from ..prompt_stream import AnswerStream
from ..scheduler_requests import Generation
from .shadow import Ranked, Shadow
from .worker import Job

FOR_FENCE = 16  # events at once where an answer may end before the model does


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, what the model says of its place, and what the second context says."""

    id: int
    logprobs: Logprobs | None
    ranked: Ranked | None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to sample `index`. The texts of its pieces join to its answer."""

    index: int
    text: str
    tokens: list[Token]  # one; none where only the end is told
    finish_reason: str | None
    stop_reason: str | int | None

    @classmethod
    def of(cls, event: StreamEvent, ranked: Ranked | None) -> Piece:
        tokens = [Token(token, event.logprobs, ranked) for token in event.token_ids]
        return cls(event.index, event.text, tokens, event.finish_reason, event.stop_reason)


class Answer:
    """One sample while it is written: pieces go in, and come out when their text is certain."""

    def __init__(self, urial: UrialPrompt | None) -> None:
        self._stream = AnswerStream(urial) if urial else None
        self._waiting: deque[Piece] = deque()
        self._raw = ""  # their texts, and those that came before
        self._told = 0  # characters of it, of pieces that have come out
        self.ended = False

    def push(self, piece: Piece) -> list[Piece]:
        if self._stream is None:
            self.ended = piece.finish_reason is not None
            return [piece]
        self._raw += piece.text
        self._waiting.append(piece)
        self._stream.push(piece.text)
        if piece.finish_reason is None and not self._stream.ended:
            return self._settled(*self._stream.reach())
        return self._last(piece, self._stream)

    def _settled(self, start: int, end: int) -> list[Piece]:
        """Those whose text ends before `end`; what stands before `start` is cut from it."""
        told = []
        while self._waiting and self._told + len(self._waiting[0].text) <= end:
            piece = self._waiting.popleft()
            after = self._told + len(piece.text)
            cut = max(start - self._told, 0)
            told.append(replace(piece, text=piece.text[cut:]) if cut else piece)
            self._told = after
        return told

    def _last(self, last: Piece, stream: AnswerStream) -> list[Piece]:
        """The rest, cut where the answer ends; tokens that stand behind it are left out."""
        self.ended = True
        reasons = ("stop", FENCE) if stream.ended else (last.finish_reason, last.stop_reason)
        stream.finish()
        start, end = stream.reach()
        told = self._settled(start, end)
        if self._waiting and self._told < end:
            text = self._raw[max(self._told, start) : end]
            told.append(replace(self._waiting[0], text=text))
        told = told or [replace(self._waiting[0], text="")]  # the end has a token, too
        told[-1] = replace(told[-1], finish_reason=reasons[0], stop_reason=reasons[1])
        return told


async def written(
    job: Job, urial: UrialPrompt | None, shadow: Shadow | None
) -> AsyncGenerator[list[Piece], None]:
    """What is certain of all samples, each time that some of it is new. It ends with them."""
    request = job.request
    assert isinstance(request, Generation)
    answers = [Answer(urial) for _ in request.samples]
    async for events in job.events():
        ranked = await shadow.rank(events) if shadow else [None] * len(events)
        pieces: list[Piece] = []
        for event, what in zip(events, ranked, strict=True):
            answer = answers[event.index]
            if not answer.ended:
                pieces += answer.push(Piece.of(event, what))
        if pieces:
            yield pieces
        if all(answer.ended for answer in answers):
            return
