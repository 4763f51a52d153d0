"""One sample of a prompt while it grows: its tokens go in; its text and end come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .outputs import CompletionOutput, Logprobs, StreamEvent
from .sampling import SamplingParams
from .stop import StopMatcher

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Penalties:
    """The distinct tokens that penalties look at, and how often each stands in the output.

    The output is in the scope of every penalty, so each token listed is one that repeats.
    """

    def __init__(self, seen: Sequence[int]) -> None:
        distinct = np.unique(np.array(seen, np.int32))
        self._slots = {int(token): slot for slot, token in enumerate(distinct)}
        self._ids = distinct
        self._counts = np.zeros_like(distinct)

    def add(self, token: int) -> None:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            room = np.zeros(max(slot, 64), np.int32)  # doubling: what is copied stays few
            self._ids = np.concatenate([self._ids, room])
            self._counts = np.concatenate([self._counts, room])
        self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> NDArray[np.int32]:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.int32]:
        return self._counts[: len(self._slots)]


class Sample:
    """Sample `index` of a request. It is finished when `finish_reason` is not None."""

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        *,
        prompt: Sequence[int],
        prefix: int,  # how many of the prompt's ids are the engine's prefix
        seed: int,
        max_tokens: int,
        eos: frozenset[int],
        tokenizer: Tokenizer,
    ) -> None:
        self.index = index
        self.params = params
        self.seed = seed
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.penalties = _penalties(params, prompt, prefix)
        self._max_tokens = max_tokens
        self._prompt_tokens = len(prompt)
        self._eos = frozenset() if params.ignore_eos else eos
        self._stops = frozenset(params.stop_token_ids)
        self._text: list[str] = []
        self._logprobs: list[Logprobs] = []
        self._cumulative_logprob = 0.0
        self._detokenizer = tokenizer.stream(continues=True)
        self._matcher = StopMatcher(params.stop_strings, include=params.include_stop_str_in_output)

    @property
    def position(self) -> int:
        """Absolute position of the token that comes next."""
        return self._prompt_tokens + len(self.token_ids)

    @property
    def banned(self) -> frozenset[int]:
        """What must not come next: the tokens that would end it too early."""
        early = len(self.token_ids) < self.params.min_tokens
        return self._eos | self._stops if early else frozenset()

    def accept(self, token: int, logprob: float, logprobs: Logprobs | None) -> StreamEvent:
        """The next token was chosen."""
        self.token_ids.append(token)
        self._cumulative_logprob += logprob
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if self.penalties is not None:
            self.penalties.add(token)
        text = self._read(token)
        return StreamEvent(
            index=self.index,
            text=text,
            token_ids=[token],
            logprobs=logprobs,
            finished=self.finish_reason is not None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            seed=self.seed,
        )

    def abort(self) -> None:
        """End it here, with the text so far."""
        self.finish_reason = "abort"
        self._text.append(self._matcher.push(self._detokenizer.finish()) + self._matcher.flush())

    def output(self) -> CompletionOutput:
        assert self.finish_reason is not None
        return CompletionOutput(
            index=self.index,
            text="".join(self._text),
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            cumulative_logprob=self._cumulative_logprob,
            logprobs=None if self.params.logprobs is None else self._logprobs,
        )

    def _read(self, token: int) -> str:
        """The text that `token` brings, and whether it is the last one."""
        count = len(self.token_ids)
        ends = token in self._eos or token in self._stops
        last = ends or count == self._max_tokens
        hidden = ends and not self.params.include_stop_str_in_output
        piece = "" if hidden else self._detokenizer.push(token)
        piece += self._detokenizer.finish() if last else ""
        text = self._matcher.push(piece) if count > self.params.min_tokens else piece
        if self._matcher.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._matcher.matched
        elif last:
            self.finish_reason = "stop" if ends else "length"
            self.stop_reason = token if ends and token not in self._eos else None
            text += self._matcher.flush()
        self._text.append(text)
        return text


def _penalties(params: SamplingParams, prompt: Sequence[int], prefix: int) -> Penalties | None:
    repeats = params.repetition_penalty != 1
    if not (repeats or params.presence_penalty or params.frequency_penalty):
        return None
    scopes = {"all": 0, "no_prefix": prefix, "output": len(prompt)}
    start = scopes[params.repetition_penalty_scope] if repeats else len(prompt)
    return Penalties(prompt[start:])
