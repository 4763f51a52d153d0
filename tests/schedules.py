"""A scheduler on the watchful fake, requests for it, and what each gives alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.fakes import (
    FakeBackend,
    FakeTokenizer,
    check_books,
    hidden_of,
    logits_of,
)
from tests.test_stop import cut
from urial_engine.kernels import sample as sampler
from urial_engine.kv_cache import KVCache
from urial_engine.outputs import CompletionOutput
from urial_engine.sampling import SamplingParams
from urial_engine.scheduler import Scheduler
from urial_engine.scheduler_requests import Generation, Request

EOS = frozenset({1})
TOKENIZER: Any = FakeTokenizer()


class Bench:
    """A scheduler on a fake backend, and requests for it."""

    def __init__(self, *, blocks: int = 64, max_batch: int = 8, chunk: int = 16) -> None:
        self.backend = FakeBackend()
        self.backend.allocate(blocks)
        self.cache = KVCache(self.backend, blocks)
        self.scheduler = Scheduler(
            self.backend, self.cache, TOKENIZER, max_batch=max_batch, chunk=chunk
        )

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.submit(request)
        for _ in range(3000):
            if all(request.finished for request in requests):
                break
            self.scheduler.step()
        assert all(request.finished for request in requests), "it stands still"
        assert self.cache.available == self.cache.blocks, "blocks are still held or promised"
        check_books(self.cache)


def generation(
    ids: list[int], params: SamplingParams, *, seed: int = 0, prefix: int = 0, label: str = "it"
) -> Generation:
    return Generation(
        label,
        ids,
        params,
        seed=seed,
        max_tokens=params.max_tokens or 0,
        prefix=prefix,
        eos=EOS,
        tokenizer=TOKENIZER,
    )


def completions(request: Generation) -> list[CompletionOutput]:
    assert request.error is None
    return [sample.output() for sample in request.samples]


def alone(ids: list[int], p: SamplingParams, *, seed: int = 0, index: int = 0) -> tuple[Any, ...]:
    """(text, token ids, finish reason, stop reason) by the definitions, nothing shared."""
    output: list[int] = []
    ends = {*([] if p.ignore_eos else EOS), *p.stop_token_ids}
    while True:
        seen = set(output) | (set(ids) if p.repetition_penalty_scope == "all" else set())
        counts = Counter(output)
        token = sampler.reference(
            logits_of(hidden_of(ids + output)),
            sampler.uniform(seed, index, len(ids) + len(output)),
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=p.min_p,
            repetition_penalty=p.repetition_penalty,
            presence_penalty=p.presence_penalty,
            frequency_penalty=p.frequency_penalty,
            penalty_ids=sorted(seen),
            penalty_repeats=[1] * len(seen),
            penalty_counts=[counts[t] for t in sorted(seen)],
            banned_ids=sorted(ends) if len(output) < p.min_tokens else [],
        )
        output.append(token)
        words = ["" if t in ends else FakeTokenizer.words[t] for t in output]
        free = "".join(words[: p.min_tokens])  # no stop string is looked for in it
        text, stop = cut("".join(words[p.min_tokens :]), p.stop_strings, False)
        if stop is not None:
            return free + text, output, "stop", stop
        if token in ends:
            return free + text, output, "stop", None if token in EOS and not p.ignore_eos else token
        if len(output) == p.max_tokens:
            return free + text, output, "length", None


def told(output: CompletionOutput) -> tuple[Any, ...]:
    return output.text, output.token_ids, output.finish_reason, output.stop_reason


def greedy(tokens: int = 6, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **fields)


def sampled(tokens: int = 6, **fields: Any) -> SamplingParams:
    return greedy(tokens, temperature=1.0, **fields)
