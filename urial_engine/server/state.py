"""What all routes share: models, worker, limits, metrics; and the checks that every request has."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..sampling import SamplingParams
from ..scheduler_requests import Generation
from .metrics import Metrics
from .models import Asked, Models, Served
from .refusal import bad
from .worker import Job, Worker

LOG = logging.getLogger(__name__)
MOST_FIGURES = 1 << 18  # log-probabilities of prompts that one request may ask for, in all choices


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_body: int = 2 << 20  # bytes
    body_seconds: float = 30.0  # in which a body must have come
    max_new_tokens: int | None = None
    max_n: int = 16
    max_stop: int = 16
    max_queries: int = 16  # of a token shift
    deadline: float | None = None  # seconds

    def check(self, params: SamplingParams) -> SamplingParams:
        """The same, with no more new tokens than there may be."""
        if params.n > self.max_n:
            raise bad(f"n={params.n}: at most {self.max_n} samples are made here", "n")
        stops = len(params.stop_strings) + len(tuple(params.stop_token_ids))
        if stops > self.max_stop:
            raise bad(f"{stops} stop strings and tokens: at most {self.max_stop}", "stop")
        most = self.max_new_tokens
        if most is None:
            return params
        if params.max_tokens is None:
            return replace(params, max_tokens=most)
        if params.max_tokens > most:
            raise bad(f"max_tokens={params.max_tokens}: at most {most} are made here", "max_tokens")
        return params

    def new_tokens(self, said: int | None, usual: int) -> int:
        """What a client has said, to be checked; else what is usual, or as many as there may be."""
        return min(usual, self.max_new_tokens or usual) if said is None else said

    def until(self, seconds: float | None) -> float | None:
        """The deadline of a request that arrives now, of time.monotonic."""
        if seconds is not None and not 0 < seconds < 1e9:
            raise bad(f"deadline={seconds}: must be a positive number of seconds", "deadline")
        given = [s for s in (seconds, self.deadline) if s is not None]
        return time.monotonic() + min(given) if given else None


@dataclass(frozen=True, slots=True)
class State:
    models: Models
    worker: Worker
    limits: Limits
    metrics: Metrics
    log_prompts: bool = False
    passed_over: set[str] = field(default_factory=set)  # unknown fields, told once

    def served(self, name: str | None, count: int = 1) -> Served:
        """A model, where it has room for so many requests: looked at before their texts are read,
        so that a refusal costs little."""
        served = self.models.get(name)
        self.worker.check_room(served.engine, count)
        return served

    def generation(
        self, served: Served, asked: Asked, params: SamplingParams, label: str
    ) -> Generation:
        """A request whose tokens come as events."""
        if asked.urial:
            stop = (*params.stop_strings, *asked.urial.stop)
            params = replace(params, stop=tuple(dict.fromkeys(stop)))
        if self.log_prompts:
            LOG.info("%s: %r", served.name, asked.prompt)
        engine, prompt = served.engine, asked.prompt
        if params.max_tokens is None:  # to the end of the context, or of what the cache can hold
            prompt = engine.token_ids(prompt, label, asked.prefix)
            first = len(prompt) - 1 if params.prompt_logprobs is None else 0
            most = engine.capacity(prompt, first) + 1 - len(prompt)  # the last is never read
            params = replace(params, max_tokens=max(most, 1))
        return engine.generation(prompt, params, label, stream=True, prefix=asked.prefix)

    @contextmanager
    def running(
        self,
        served: Served,
        requests: Sequence[Generation],
        deadline: float | None,
        every: int = 1,
    ) -> Iterator[list[Job]]:
        """As `Worker.begin`, and counted."""
        begun = self.worker.begin(served.engine, requests, deadline, every=every)
        with begun as jobs, self.metrics.counted(requests):
            yield jobs
