"""What the scheduler works on: a request for each prompt, and the sequences that read its tokens.

A request goes in with the token ids of its prompt and says what it wants: hidden states (`kept`),
scores (`scored`) or new tokens (`Generation`). It comes out with them, or with an error.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import F32, HeadScores
from .errors import UrialError
from .kv_cache import Segment
from .outputs import StreamEvent
from .sampling import SamplingParams
from .scheduler_samples import Sample

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class Sequence:
    """Token ids that are read through the model, as far as `leaf` has come."""

    request: Request
    ids: list[int]  # the prompt, then what was generated
    leaf: Segment
    sample: Sample | None  # None: its prompt is all that it reads
    leads: bool  # the first of its request: what that wants of the prompt comes from its rows
    table: bytes = b""  # of int32: the physical block at each absolute block index

    @property
    def pending(self) -> int:
        return len(self.ids) - self.leaf.end


@dataclass(eq=False, slots=True)
class Scored:
    """Wanted scores: targets[i] is the token to judge by the row at position `rows_from` + i."""

    targets: list[int]
    top_k: int
    parts: list[HeadScores] = field(default_factory=list)

    def joined(self) -> HeadScores:
        """All parts as one, [len(targets)]."""
        return HeadScores(*map(np.concatenate, zip(*self.parts, strict=True)))


class Request:
    """A prompt that is read once. `label` names it in errors.

    `rows_from` is the first position whose hidden state is wanted: what the cache has of the
    tokens before it is not computed again.
    """

    def __init__(
        self,
        label: str,
        ids: list[int],
        rows_from: int,
        *,
        keep: bool = False,
        scored: Scored | None = None,
        pin: bool = False,
        urgent: bool = False,
    ) -> None:
        self.label = label
        self.ids = ids
        self.rows_from = rows_from
        self.kept: list[F32] | None = [] if keep else None  # hidden states [rows, C] in pieces
        self.scored = scored
        self.urgent = urgent  # it stands before all that wait, and counts in no batch
        self.pin = pin  # its tokens stay in the cache, where `pinned` says, until they are unpinned
        self.pinned: Segment | None = None
        self.samples: list[Sample] = []
        self.cached = 0  # tokens that the cache had
        self.finished = False
        self.error: UrialError | None = None
        self.submitted = time.perf_counter()
        self.started: float | None = None  # seconds after that
        self.ended: float | None = None

    def elapsed(self) -> float:
        return time.perf_counter() - self.submitted

    @property
    def tokens(self) -> int:
        """How many tokens one of its sequences keeps in the cache, at most."""
        return len(self.ids)

    def begin(self, *, cached: int) -> None:
        """Its first sequence leaves the queue; the cache has `cached` tokens of the prompt."""
        if self.started is None:
            self.cached, self.started = cached, self.elapsed()

    def finish(self) -> None:
        """Nothing more is computed: it is complete, was cancelled or has an error."""
        self.finished = True
        self.ended = self.elapsed()


class Generation(Request):
    """New tokens after one prompt: `params.n` samples, which share what was computed of it."""

    def __init__(
        self,
        label: str,
        ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        max_tokens: int,  # that fit in the context
        prefix: int,  # how many of the ids are the engine's prefix
        eos: frozenset[int],
        tokenizer: Tokenizer,
        stream: bool = False,
    ) -> None:
        first = max(prefix, 1)  # the first token that is judged, if any
        judged = params.prompt_logprobs is not None and first < len(ids)
        scored = Scored(ids[first:], params.prompt_logprobs or 0) if judged else None
        super().__init__(label, ids, first - 1 if judged else len(ids) - 1, scored=scored)
        self.params = params
        self.max_tokens = max_tokens
        self.prefix = prefix
        self.samples = [
            Sample(
                index,
                params,
                prompt=ids,
                prefix=prefix,
                seed=seed,
                max_tokens=max_tokens,
                eos=eos,
                tokenizer=tokenizer,
                stream=stream,
            )
            for index in range(params.n)
        ]
        self.first_token: float | None = None
        self.events: deque[StreamEvent] | None = deque() if stream else None

    @property
    def tokens(self) -> int:
        return len(self.ids) + self.max_tokens - 1  # the last token is never read

    def note(self, sample: Sample, text: str) -> None:
        """A sample has one token more, and `text` came with it."""
        if self.first_token is None:
            self.first_token = self.elapsed()
        if self.events is not None:
            self.events.append(sample.event(text))

    def finish(self) -> None:
        for sample in self.samples:
            if sample.finish_reason is None:
                sample.abort()
        super().finish()
