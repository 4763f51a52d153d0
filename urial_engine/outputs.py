"""What the engine hands back. Plain records: nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Of one token at one place. `logprob` is the raw model's, in nats.

    `rank` of the token that stands there is 1 + how many tokens have a larger logit; of the others
    it is their place among the likeliest, where ties stand in order of id.
    """

    logprob: float
    rank: int
    decoded_token: str


Logprobs = dict[int, Logprob]  # by token id: the token that stands there first, then the likeliest


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample. `token_ids` holds all that was generated, the token that completed a stop too."""

    index: int
    text: str  # cut at the stop
    token_ids: list[int]
    finish_reason: str  # "stop", "length" or "abort"
    stop_reason: str | int | None  # the stop string or stop token; None at EOS and otherwise
    cumulative_logprob: float  # nats, of all token_ids
    logprobs: list[Logprobs] | None  # one a token


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counts of tokens, and seconds since the request was submitted (None: not reached)."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt: not computed again
    generated_tokens: int  # of all samples
    started: float | None  # left the queue
    first_token: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One prompt of `generate`. `finished` is False where a sample was aborted."""

    prompt: str | None  # as given, without the engine's prefix; None for token ids
    prompt_token_ids: list[int]  # all that the model read, the engine's prefix included
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None  # one a prompt token; None where not computed
    seed: int
    metrics: Metrics
    finished: bool


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What one new token brings. The texts of a sample's events join to its whole text.

    `text` may be empty, while it could still become a stop string or a character is incomplete.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: Logprobs | None
    finished: bool  # this sample; `finish_reason` and `stop_reason` as in CompletionOutput
    finish_reason: str | None
    stop_reason: str | int | None
    seed: int  # of the request


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """What the model says of each of the N tokens of a continuation, given all before it."""

    token_ids: I32  # [N]
    rank: I32  # [N] 1 + how many other tokens have a larger logit
    ties: I32  # [N] how many other tokens have an equal one
    logprob: F32  # [N] nats
    entropy: F32  # [N] nats, of the whole distribution
    top_ids: I32  # [N, k] by falling logit, then rising id
    top_logprobs: F32  # [N, k] nats
