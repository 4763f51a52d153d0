"""Pieces of answers go in; the choices of OpenAI's two APIs, and of their streams, come out.

What is ours in them: `rank` beside each log-probability (`ranks` in a completion), `token_ids`,
`stop_reason`, and `shift`, what a second context says of each token (`compare_with`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from ..engine_outputs import prompt_logprobs_of
from ..outputs import Logprobs
from ..scheduler_requests import Generation
from ..tokenizer import Detokenizer, Tokenizer
from .answers import Piece, Token

Object = dict[str, Any]
FIGURE = 8  # characters that are tokenised, about, while one log-probability is written
COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "ranks", "token_ids", "text_offset")


class Form(Protocol):
    """How one API writes answers. `first`: whether the choice has had no chunk before.

    `add_prompts`: the log-probabilities of each prompt, where vLLM has them.
    """

    def head(self, *, chunk: bool) -> Object: ...
    def chunk(self, pieces: Sequence[Piece], *, first: bool) -> Object: ...
    def choice(self, pieces: Sequence[Piece]) -> Object: ...
    def add_prompts(self, out: Object, each: Sequence[list[Any]]) -> None: ...


class ChatForm:
    """`/v1/chat/completions`."""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: int | None) -> None:
        self._head = _head("chatcmpl", model)
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def head(self, *, chunk: bool) -> Object:
        return {**self._head, "object": "chat.completion.chunk" if chunk else "chat.completion"}

    def chunk(self, pieces: Sequence[Piece], *, first: bool) -> Object:
        role = {"role": "assistant"} if first else {}
        delta = {**role, "content": _text(pieces)}
        return {**self._rest(pieces), "delta": delta}

    def choice(self, pieces: Sequence[Piece]) -> Object:
        message = {"role": "assistant", "content": _text(pieces), "refusal": None}
        return {**self._rest(pieces), "message": message}

    def add_prompts(self, out: Object, each: Sequence[list[Any]]) -> None:
        (out["prompt_logprobs"],) = each

    def _rest(self, pieces: Sequence[Piece]) -> Object:
        if self._logprobs is None:
            return {**_common(pieces, self._tokenizer), "logprobs": None}
        each = [self._entry(token, self._logprobs) for token in _tokens(pieces)]
        logprobs = {"content": each, "refusal": None}
        return {**_common(pieces, self._tokenizer), "logprobs": logprobs}

    def _entry(self, token: Token, likeliest: int) -> Object:
        every = [self._one(*pair) for pair in (token.logprobs or {}).items()]
        # The token itself stands first, and is one of the likeliest where there are no more.
        top = every if len(every) == likeliest else every[1:]
        return {**every[0], "top_logprobs": sorted(top, key=_place)}

    def _one(self, token_id: int, logprob: Any) -> Object:
        own = self._tokenizer.token_bytes(token_id)  # of a part of a character, too
        return {
            "token": logprob.decoded_token,
            "token_id": token_id,
            "logprob": logprob.logprob,
            "rank": logprob.rank,
            "bytes": None if own is None else list(own),
        }


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as the choices of its completion begin with it: its text, and a row a token."""

    text: str = ""
    rows: Sequence[tuple[Any, ...]] = ()


@dataclass(slots=True)
class _Place:
    """Where a choice has come to: all the text of its tokens so far, told or not, is `read` long
    and stands behind `before` characters of its prompt."""

    stream: Detokenizer
    read: int = 0
    before: int = 0
    echo: Echo = field(default_factory=Echo)  # to be told yet


class CompletionForm:
    """`/v1/completions`."""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: int | None) -> None:
        self._head = _head("cmpl", model)
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._places: dict[int, _Place] = {}

    def head(self, *, chunk: bool) -> Object:
        return {**self._head, "object": "text_completion"}

    def echo(self, request: Generation, prompt: str | list[int]) -> Echo:
        """The prompt as its tokens, without the URIAL prompt before it."""
        skip = request.prefix
        ids = request.ids[skip:]
        stream = self._tokenizer.stream(continues=skip > 0)
        texts = [stream.push(token) for token in ids]
        text, starts = "".join(texts) + stream.finish(), [0, *accumulate(map(len, texts))]
        if isinstance(prompt, str) and text != prompt:
            # Its tokens do not say how it was written.
            text, starts = prompt, [0, *[len(prompt)] * len(ids)]
        if self._logprobs is None:
            return Echo(text)
        known = prompt_logprobs_of(request, self._tokenizer) or [None] * len(request.ids)
        columns = zip(ids, known[skip:], starts, strict=False)  # a start more than tokens
        return Echo(text, [(*self._row(Token(t, found, None)), at) for t, found, at in columns])

    def begin(self, index: int, echo: Echo) -> None:
        """The choice, or its first chunk, is to begin with its prompt."""
        place = self._place(index)
        place.echo, place.before = echo, len(echo.text)

    def chunk(self, pieces: Sequence[Piece], *, first: bool) -> Object:
        return self.choice(pieces)

    def choice(self, pieces: Sequence[Piece]) -> Object:
        place = self._place(pieces[0].index)
        echo, place.echo = place.echo, Echo()
        logprobs = None
        if self._logprobs is not None:
            rows = [*echo.rows, *self._rows(pieces, place)]
            columns = zip(*rows, strict=True) if rows else ((),) * len(COLUMNS)
            logprobs = {n: list(column) for n, column in zip(COLUMNS, columns, strict=True)}
        common = _common(pieces, self._tokenizer)
        return {**common, "text": echo.text + _text(pieces), "logprobs": logprobs}

    def add_prompts(self, out: Object, each: Sequence[list[Any]]) -> None:
        for choice in out["choices"]:
            place = choice["index"] * len(each) // len(out["choices"])
            choice["prompt_logprobs"] = each[place]

    def _place(self, index: int) -> _Place:
        if index not in self._places:
            self._places[index] = _Place(self._tokenizer.stream(continues=True))
        return self._places[index]

    def _rows(self, pieces: Sequence[Piece], place: _Place) -> Iterator[tuple[Any, ...]]:
        """A token's text may be told later than the token, so its place is counted here."""
        for piece in pieces:
            for token in piece.tokens:
                yield *self._row(token), place.before + place.read
                place.read += len(place.stream.push(token.id))

    def _row(self, token: Token) -> tuple[Any, ...]:
        text = self._tokenizer.token_text(token.id)
        if token.logprobs is None:  # the first of a prompt: nothing stands before it
            return text, None, None, None, token.id
        own = token.logprobs[token.id]
        top: dict[str, float] = {}
        for one in token.logprobs.values():  # two ids may be written the same
            top[one.decoded_token] = max(one.logprob, top.get(one.decoded_token, one.logprob))
        return text, own.logprob, top, own.rank, token.id


def usage(requests: Sequence[Generation], new: int) -> Object:
    """Tokens of all prompts, and `new` ones of all answers."""
    prompt = sum(len(request.ids) for request in requests)
    cached = sum(request.cached for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def prompt_logprobs(entries: Sequence[Logprobs | None]) -> list[Any]:
    """As vLLM writes them."""
    names = ("logprob", "rank", "decoded_token")
    return [
        entry and {str(i): {name: getattr(one, name) for name in names} for i, one in entry.items()}
        for entry in entries
    ]


def _head(kind: str, model: str) -> Object:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _tokens(pieces: Sequence[Piece]) -> list[Token]:
    return [token for piece in pieces for token in piece.tokens]


def _place(entry: Object) -> tuple[float, int]:
    return -entry["logprob"], entry["token_id"]


def _common(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Object:
    last = pieces[-1]
    out: Object = {"index": last.index, "finish_reason": last.finish_reason}
    if last.finish_reason is not None:
        out["stop_reason"] = last.stop_reason
    if any(token.ranked for piece in pieces for token in piece.tokens):
        out["shift"] = [
            {
                "token_id": token.id,
                "token": tokenizer.token_text(token.id),
                "text": piece.text,
                "rank": token.ranked.rank,
                "ties": token.ranked.ties,
                "logprob": token.ranked.logprob,
            }
            for piece in pieces
            for token in piece.tokens
            if token.ranked
        ]
    return out
