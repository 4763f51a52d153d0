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


FIELDS = {"temperature": "f4", "top_k": "i4", "top_p": "f4", "min_p": "f4"}
FIELDS |= dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), "f4")
# How a sample chooses, as far as that never changes. Each keeps its record as bytes: those of all
# samples of a step, joined, are the step's array.
SETTINGS = np.dtype([*FIELDS.items(), ("seed", "u8"), ("sample", "u4")])
NOTHING = np.zeros(0, np.int32)


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
        stream: bool = False,  # somebody wants the text of each token as it comes
    ) -> None:
        self.index = index
        self.params = params
        self.seed = seed
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.penalties = _penalties(params, prompt, prefix)
        self.top_logprobs = params.logprobs or 0
        own = [getattr(params, name) for name in FIELDS]
        self.settings = np.array((*own, seed, index), SETTINGS).tobytes()
        self._max_tokens = max_tokens
        self._eos = frozenset() if params.ignore_eos else eos
        self._ends = self._eos.union(params.stop_token_ids)
        self._banned = np.array(sorted(self._ends), np.int32)
        self._eager = stream or bool(params.stop)
        self._read_tokens = 0  # whose text has been made
        self._text: list[str] = []
        self._logprobs: list[Logprobs] = []
        self._cumulative_logprob = 0.0
        self._detokenizer = tokenizer.stream(continues=True)
        self._matcher = StopMatcher(params.stop_strings, include=params.include_stop_str_in_output)

    @property
    def banned(self) -> NDArray[np.int32]:
        """What must not come next: the tokens that would end it too early."""
        return self._banned if len(self.token_ids) < self.params.min_tokens else NOTHING

    def accept(self, token: int, logprob: float, logprobs: Logprobs | None) -> str:
        """The next token was chosen. Returns the text that it makes certain.

        Where nobody streams and there are no stop strings, that is nothing: the text of all tokens
        is made in the end, at once.
        """
        self.token_ids.append(token)
        self._cumulative_logprob += logprob
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if self.penalties is not None:
            self.penalties.add(token)
        if token in self._ends:
            self.finish_reason = "stop"
            self.stop_reason = None if token in self._eos else token
        elif len(self.token_ids) == self._max_tokens:
            self.finish_reason = "length"
        return self._read() if self._eager else ""

    def event(self, text: str) -> StreamEvent:
        """What the newest token brought."""
        return StreamEvent(
            index=self.index,
            text=text,
            token_ids=self.token_ids[-1:],
            logprobs=self._logprobs[-1] if self._logprobs else None,
            finished=self.finish_reason is not None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            seed=self.seed,
        )

    def abort(self) -> None:
        """End it here, with the text so far."""
        self.finish_reason = "abort"

    def output(self) -> CompletionOutput:
        assert self.finish_reason is not None
        self._read()
        return CompletionOutput(
            index=self.index,
            text="".join(self._text),
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            cumulative_logprob=self._cumulative_logprob,
            logprobs=None if self.params.logprobs is None else self._logprobs,
        )

    def _read(self) -> str:
        """The text that the tokens since the last call bring, and whether it ends the sample."""
        count, ended = len(self.token_ids), self.finish_reason is not None
        hidden = self.finish_reason == "stop" and not self.params.include_stop_str_in_output
        new = self.token_ids[self._read_tokens : count - hidden]
        self._read_tokens = count
        text = "".join(map(self._detokenizer.push, new))
        text += self._detokenizer.finish() if ended else ""
        if count > self.params.min_tokens:
            text = self._matcher.push(text)
        if self._matcher.matched is None:
            text += self._matcher.flush() if ended else ""
        elif self.finish_reason != "abort":
            self.finish_reason, self.stop_reason = "stop", self._matcher.matched
        self._text.append(text)
        return text


def _penalties(params: SamplingParams, prompt: Sequence[int], prefix: int) -> Penalties | None:
    repeats = params.repetition_penalty != 1
    if not (repeats or params.presence_penalty or params.frequency_penalty):
        return None
    scopes = {"all": 0, "no_prefix": prefix, "output": len(prompt)}
    start = scopes[params.repetition_penalty_scope] if repeats else len(prompt)
    return Penalties(prompt[start:])
