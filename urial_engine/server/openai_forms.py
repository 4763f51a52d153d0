"""Pieces of answers go in; the choices of OpenAI's two APIs, and of their streams, come out.

What is ours in them: `rank` beside each log-probability (`ranks` in a completion), `token_ids`,
`stop_reason`, and `shift`, what a second context says of each token (`compare_with`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from ..outputs import Logprobs
from ..scheduler_requests import Generation
from ..tokenizer import Tokenizer
from .answers import Piece, Token

Object = dict[str, Any]


class Form(Protocol):
    """How one API writes answers. `first`: whether the choice has had a chunk before."""

    def head(self, *, chunk: bool) -> Object: ...
    def chunk(self, pieces: Sequence[Piece], *, first: bool) -> Object: ...
    def choice(self, pieces: Sequence[Piece]) -> Object: ...


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
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return {
            "token": logprob.decoded_token,
            "token_id": token_id,
            "logprob": logprob.logprob,
            "rank": logprob.rank,
            "bytes": list(text.encode()),
        }


class CompletionForm:
    """`/v1/completions`."""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: int | None) -> None:
        self._head = _head("cmpl", model)
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}  # characters of each choice so far

    def head(self, *, chunk: bool) -> Object:
        return {**self._head, "object": "text_completion"}

    def chunk(self, pieces: Sequence[Piece], *, first: bool) -> Object:
        return self.choice(pieces)

    def choice(self, pieces: Sequence[Piece]) -> Object:
        logprobs = None if self._logprobs is None else self._columns(pieces)
        common = _common(pieces, self._tokenizer)
        return {**common, "text": _text(pieces), "logprobs": logprobs}

    def _columns(self, pieces: Sequence[Piece]) -> Object:
        offset = self._offsets.get(pieces[0].index, 0)
        rows: list[tuple[Any, ...]] = []
        for piece in pieces:
            rows += [(*self._row(token), offset) for token in piece.tokens]
            offset += len(piece.text)
        self._offsets[pieces[0].index] = offset
        names = ("tokens", "token_logprobs", "top_logprobs", "ranks", "token_ids", "text_offset")
        columns = zip(*rows, strict=True) if rows else ((),) * len(names)
        return {name: list(column) for name, column in zip(names, columns, strict=True)}

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
